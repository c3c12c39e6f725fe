//! What the framework calls: a machine's end, and the guest's connections. All of it on the machine's queue, and
//! none of it waits.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use dispatch2::{DispatchQueue, DispatchRetained};
use objc2::{AnyThread, DefinedClass, Message, define_class, msg_send, rc::Retained};
use objc2_foundation::{NSError, NSObject, NSObjectProtocol};
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioSocketListenerDelegate, VZVirtualMachine, VZVirtualMachineDelegate,
};

use super::{
    bridge::Channel,
    configuration::words,
    life::{End, Life},
    queue::{Confined, OnQueue},
};

define_class!(
    // SAFETY: NSObject asks nothing of its subclasses, and this one has no `Drop`.
    #[unsafe(super(NSObject))]
    #[ivars = Arc<Life>]
    /// Hears of a machine's end.
    pub(super) struct MachineDelegate;

    // SAFETY: the protocol asks for nothing.
    unsafe impl NSObjectProtocol for MachineDelegate {}

    // SAFETY: the selectors and types are those of the protocol.
    unsafe impl VZVirtualMachineDelegate for MachineDelegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            self.ivars().end(End::ByGuest);
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            self.ivars().end(End::Failed(words(error)));
        }
    }
);

impl MachineDelegate {
    pub(super) fn new(life: Arc<Life>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(life);
        // SAFETY: `init` of NSObject.
        unsafe { msg_send![super(this), init] }
    }
}

/// Who takes the guest's connections, by the port they are to; whether it took one.
pub(super) type Taker = Box<dyn Fn(u32, Channel) -> bool + Send + Sync>;

/// What a listener's delegate knows.
pub(super) struct Listening {
    pub(super) queue: DispatchRetained<DispatchQueue>,
    pub(super) take: Taker,
}

define_class!(
    // SAFETY: NSObject asks nothing of its subclasses, and this one has no `Drop`.
    #[unsafe(super(NSObject))]
    #[ivars = Listening]
    /// Hears of the guest's connections.
    pub(super) struct ListenerDelegate;

    // SAFETY: the protocol asks for nothing.
    unsafe impl NSObjectProtocol for ListenerDelegate {}

    // SAFETY: the selector and types are those of the protocol.
    unsafe impl VZVirtioSocketListenerDelegate for ListenerDelegate {
        #[unsafe(method(listener:shouldAcceptNewConnection:fromSocketDevice:))]
        fn should_accept(
            &self,
            _listener: &VZVirtioSocketListener,
            connection: &VZVirtioSocketConnection,
            _device: &VZVirtioSocketDevice,
        ) -> bool {
            let listening = self.ivars();
            // SAFETY: a property of a connection that lives through the call, read on its queue.
            let port = unsafe { connection.destinationPort() };
            match channel(&listening.queue, connection) {
                Ok(channel) => (listening.take)(port, channel),
                Err(error) => {
                    tracing::warn!("a connection of the guest cannot be taken: {error}");
                    false
                }
            }
        }
    }
);

impl ListenerDelegate {
    pub(super) fn new(listening: Listening) -> Retained<Self> {
        let this = Self::alloc().set_ivars(listening);
        // SAFETY: `init` of NSObject.
        unsafe { msg_send![super(this), init] }
    }
}

/// A connection's bytes, and the connection. To be called on the queue.
///
/// The connection owns its descriptor and closes it when it is released, or when the machine ends; ours is a
/// duplicate, so that nobody reads another file by an old number. The framework ends the stream with the
/// connection, however many duplicates there are: it is kept as long as the duplicate is used, and then closed.
pub(super) fn channel(
    queue: &DispatchRetained<DispatchQueue>,
    connection: &VZVirtioSocketConnection,
) -> io::Result<Channel> {
    // SAFETY: a property, read on the connection's queue.
    let descriptor = unsafe { connection.fileDescriptor() };
    if descriptor < 0 {
        return Err(io::ErrorKind::NotConnected.into());
    }
    // SAFETY: the connection owns the descriptor and closes it on this queue at the earliest, after this work.
    let stream = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
    let kept = Confined::new(Kept(connection.retain()));
    Ok(Channel {
        stream,
        keep: Box::new(OnQueue::new(queue.clone(), kept)),
    })
}

/// A connection in use; closed when it is dropped, which is on its queue.
struct Kept(Retained<VZVirtioSocketConnection>);

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: on the connection's queue, as `OnQueue` drops it there. One that the framework closed already has
        // no descriptor.
        unsafe {
            if self.0.fileDescriptor() >= 0 {
                self.0.close();
            }
        }
    }
}
