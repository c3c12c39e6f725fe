//! The framework's machine, behind the queue it lives on.

use std::{cell::RefCell, io, sync::Arc, time::Duration};

use block2::RcBlock;
use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use objc2::{AnyThread, rc::Retained, runtime::ProtocolObject};
use objc2_foundation::NSError;
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener, VZVirtualMachine,
    VZVirtualMachineState,
};

use super::{
    bridge::{Channel, Guest},
    configuration::{self, ConsoleEnds, words},
    delegate::{ListenerDelegate, Listening, MachineDelegate, Taker, channel},
    life::{End, Life},
    plan::Plan,
    queue::{Answer, Confined, OnQueue},
};

/// How long the framework may take to obey.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// A machine and what has to live as long; the framework's own references to delegates are weak.
struct Objects {
    machine: Retained<VZVirtualMachine>,
    vsock: Option<Retained<VZVirtioSocketDevice>>,
    ports: Vec<u32>,
    _listener: Retained<VZVirtioSocketListener>,
    _delegates: (Retained<MachineDelegate>, Retained<ListenerDelegate>),
}

/// A machine of the framework; ends when it is dropped.
pub(super) struct VirtualMachine {
    queue: DispatchRetained<DispatchQueue>,
    /// Emptied when it is given up.
    objects: Arc<OnQueue<RefCell<Option<Objects>>>>,
    life: Arc<Life>,
}

/// What came of a command.
type Outcome = Result<(), String>;

impl VirtualMachine {
    /// Makes it, not started. Connections of the guest to `ports` go to `take`.
    ///
    /// # Errors
    /// In the framework's words.
    pub(super) fn make(
        plan: &Plan,
        console: ConsoleEnds,
        life: &Arc<Life>,
        ports: Vec<u32>,
        take: Taker,
    ) -> Result<Self, String> {
        let queue = DispatchQueue::new("microagent.machine", DispatchQueueAttr::SERIAL);
        let mut made = Err("the machine's queue did not run".to_owned());
        // Nobody else has the queue yet: waiting for it here keeps nothing waiting.
        queue.exec_sync(|| {
            made = objects(plan, console, &queue, life, ports, take)
                .map(|objects| Confined::new(RefCell::new(Some(objects))));
        });
        Ok(Self {
            objects: Arc::new(OnQueue::new(queue.clone(), made?)),
            queue,
            life: Arc::clone(life),
        })
    }

    /// Starts it; returns once it runs.
    ///
    /// # Errors
    /// In the framework's words; `None` if it did not answer within `limit`.
    pub(super) fn start(&self, limit: Duration) -> Result<(), Option<String>> {
        let outcome = self.command(limit, |machine, handler| {
            // SAFETY: on the machine's queue; the framework copies the block.
            unsafe { machine.startWithCompletionHandler(handler) };
        });
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(words)) => Err(Some(words)),
            None => Err(None),
        }
    }

    /// Freezes its vCPUs.
    pub(super) fn pause(&self) -> Outcome {
        self.unless(VZVirtualMachineState::Paused, |machine, handler| {
            // SAFETY: as in `start`. In a state that has no such way the handler gets an error.
            unsafe { machine.pauseWithCompletionHandler(handler) };
        })
    }

    /// Thaws its vCPUs.
    pub(super) fn resume(&self) -> Outcome {
        self.unless(VZVirtualMachineState::Running, |machine, handler| {
            // SAFETY: as in `pause`.
            unsafe { machine.resumeWithCompletionHandler(handler) };
        })
    }

    /// Asks for its end, now. The end is told to its life; if it cannot be stopped just now, nothing happens.
    pub(super) fn stop(&self) {
        let life = Arc::clone(&self.life);
        self.objects.tell(move |objects| {
            let objects = objects.borrow();
            let Some(Objects { machine, .. }) = &*objects else {
                return;
            };
            // SAFETY: properties, read on the machine's queue.
            let (may, state) = unsafe { (machine.canStop(), machine.state()) };
            if may {
                let handler = RcBlock::new(move |error: *mut NSError| match outcome(error) {
                    Ok(()) => life.end(End::Killed),
                    Err(words) => tracing::warn!("the machine does not stop: {words}"),
                });
                // SAFETY: as in `start`.
                unsafe { machine.stopWithCompletionHandler(&handler) };
            } else if state == VZVirtualMachineState::Stopped {
                // Its delegate was not heard.
                life.end(End::Killed);
            } else if state == VZVirtualMachineState::Error {
                life.end(End::Failed("the framework says that it failed".to_owned()));
            }
        });
    }

    /// Takes no connection of the guest any more.
    pub(super) fn close_ports(&self) {
        self.objects.tell(|objects| {
            let objects = objects.borrow();
            if let Some(Objects {
                vsock: Some(vsock),
                ports,
                ..
            }) = &*objects
            {
                for port in ports {
                    // SAFETY: on the machine's queue.
                    unsafe { vsock.removeSocketListenerForPort(*port) };
                }
            }
        });
    }

    /// Lets go of the framework's objects, and of the machine with them.
    pub(super) fn give_up(&self) {
        let life = Arc::clone(&self.life);
        self.objects.tell(move |objects| {
            let gone = objects.borrow_mut().take();
            drop(gone);
            life.end(End::Killed);
        });
    }

    /// The guest's side of its vsock. Does not keep the machine.
    pub(super) fn guest(&self) -> impl Guest + use<> {
        Ports {
            queue: self.queue.clone(),
            objects: Arc::downgrade(&self.objects),
        }
    }

    fn unless(
        &self,
        wanted: VZVirtualMachineState,
        command: impl FnOnce(&VZVirtualMachine, &Handler) + Send + 'static,
    ) -> Outcome {
        let done = self.objects.ask(COMMAND_LIMIT, move |objects, answer| {
            let objects = objects.borrow();
            let Some(Objects { machine, .. }) = &*objects else {
                return answer.give(Err("the machine is gone".to_owned()));
            };
            // SAFETY: a property, read on the machine's queue.
            if unsafe { machine.state() } == wanted {
                return answer.give(Ok(()));
            }
            command(machine, &handler(answer));
        });
        done.unwrap_or_else(|| Err(format!("no answer within {COMMAND_LIMIT:?}")))
    }

    fn command(
        &self,
        limit: Duration,
        command: impl FnOnce(&VZVirtualMachine, &Handler) + Send + 'static,
    ) -> Option<Outcome> {
        self.objects.ask(limit, move |objects, answer| {
            let objects = objects.borrow();
            match &*objects {
                Some(Objects { machine, .. }) => command(machine, &handler(answer)),
                None => answer.give(Err("the machine is gone".to_owned())),
            }
        })
    }
}

type Handler = block2::DynBlock<dyn Fn(*mut NSError)>;

/// A completion handler that passes the outcome on, and waits for nobody.
fn handler(answer: Answer<Outcome>) -> RcBlock<dyn Fn(*mut NSError)> {
    RcBlock::new(move |error: *mut NSError| answer.give(outcome(error)))
}

/// What a completion handler was given.
fn outcome(error: *mut NSError) -> Outcome {
    // SAFETY: the framework gives nil, or an error that lives through the handler.
    match unsafe { error.as_ref() } {
        None => Ok(()),
        Some(error) => Err(words(error)),
    }
}

fn objects(
    plan: &Plan,
    console: ConsoleEnds,
    queue: &DispatchRetained<DispatchQueue>,
    life: &Arc<Life>,
    ports: Vec<u32>,
    take: Taker,
) -> Result<Objects, String> {
    let configuration = configuration::of(plan, console)?;
    let delegate = MachineDelegate::new(Arc::clone(life));
    let listener_delegate = ListenerDelegate::new(Listening {
        queue: queue.clone(),
        take,
    });
    // SAFETY: the configuration is valid, as the initialiser demands, and the queue serial; everything that is
    // asked of the machine and its devices here is asked on that queue. The delegates outlive the machine, as
    // `Objects` holds all of them, and their ivars are of types that any thread may use.
    let (machine, vsock, listener) = unsafe {
        let machine = VZVirtualMachine::initWithConfiguration_queue(
            VZVirtualMachine::alloc(),
            &configuration,
            queue,
        );
        machine.setDelegate(Some(ProtocolObject::from_ref(&*delegate)));
        let listener = VZVirtioSocketListener::new();
        listener.setDelegate(Some(ProtocolObject::from_ref(&*listener_delegate)));
        let vsock = machine
            .socketDevices()
            .firstObject()
            .and_then(|device| device.downcast::<VZVirtioSocketDevice>().ok());
        if let Some(vsock) = &vsock {
            for port in &ports {
                vsock.setSocketListener_forPort(&listener, *port);
            }
        }
        (machine, vsock, listener)
    };
    if vsock.is_none() {
        return Err("the framework made a machine without its vsock".to_owned());
    }
    Ok(Objects {
        machine,
        vsock,
        ports,
        _listener: listener,
        _delegates: (delegate, listener_delegate),
    })
}

/// The guest's ports.
struct Ports {
    queue: DispatchRetained<DispatchQueue>,
    objects: std::sync::Weak<OnQueue<RefCell<Option<Objects>>>>,
}

impl Guest for Ports {
    fn connect(&self, port: u32, limit: Duration) -> io::Result<Channel> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the machine is gone");
        let objects = self.objects.upgrade().ok_or_else(gone)?;
        let queue = self.queue.clone();
        let connected = objects.ask(
            limit,
            move |objects, answer: Answer<io::Result<Channel>>| {
                let objects = objects.borrow();
                let Some(Objects {
                    vsock: Some(vsock), ..
                }) = &*objects
                else {
                    return answer.give(Err(gone()));
                };
                let handler = RcBlock::new(
                    move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
                        // SAFETY: the framework gives nil, or a connection that lives through the handler, which
                        // runs on the queue.
                        let connection = unsafe { connection.as_ref() };
                        answer.give(match (connection, outcome(error)) {
                            (Some(connection), Ok(())) => channel(&queue, connection),
                            (_, Err(words)) => Err(io::Error::other(words)),
                            (None, Ok(())) => Err(io::ErrorKind::ConnectionRefused.into()),
                        });
                    },
                );
                // SAFETY: on the machine's queue; the framework copies the block.
                unsafe { vsock.connectToPort_completionHandler(port, &handler) };
            },
        );
        connected.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }
}
