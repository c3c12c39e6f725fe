//! A plan, in the framework's own objects.
//!
//! Configuration objects are plain: the framework copies them when a machine is made of them. Each is used here by
//! the thread that made it and by no other, which is all that their calls ask for.

use std::os::fd::{IntoRawFd, OwnedFd};

use objc2::{AnyThread, rc::Retained};
use objc2_foundation::{NSArray, NSError, NSFileHandle, NSString, NSURL};
use objc2_virtualization::{
    VZDiskImageCachingMode, VZDiskImageStorageDeviceAttachment, VZDiskImageSynchronizationMode,
    VZFileHandleSerialPortAttachment, VZGenericPlatformConfiguration, VZLinuxBootLoader,
    VZStorageDeviceConfiguration, VZVirtioBlockDeviceConfiguration,
    VZVirtioConsoleDeviceSerialPortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioSocketDeviceConfiguration, VZVirtualMachineConfiguration,
};

use super::plan::{Disk, Limits, Plan};
use crate::text::printable;

/// The console's two descriptors: the guest's input is read from one, its output written to the other.
pub(super) struct ConsoleEnds {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
}

/// The configuration for a plan, valid by the framework's own judgement.
///
/// # Errors
/// In the framework's words.
pub(super) fn of(
    plan: &Plan,
    console: ConsoleEnds,
) -> Result<Retained<VZVirtualMachineConfiguration>, String> {
    let configuration = small(&plan.kernel);
    // SAFETY: plain setters and initialisers of objects that this function has alone, given objects that live
    // through the calls; the numbers and strings are within what the plan checked.
    unsafe {
        if let Some(loader) = configuration
            .bootLoader()
            .and_then(|loader| loader.downcast::<VZLinuxBootLoader>().ok())
        {
            loader.setInitialRamdiskURL(Some(&file_url(&plan.initramfs)));
            loader.setCommandLine(&NSString::from_str(plan.command_line));
            configuration.setBootLoader(Some(&loader));
        }
        configuration.setCPUCount(plan.vcpus);
        configuration.setMemorySize(plan.memory);

        let disks: Vec<_> = plan.disks.iter().map(disk).collect::<Result<_, _>>()?;
        configuration.setStorageDevices(&NSArray::from_retained_slice(&disks));

        let attachment =
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                Some(&file_handle(console.input)),
                Some(&file_handle(console.output)),
            );
        let port = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        port.setAttachment(Some(&attachment));
        configuration.setSerialPorts(&NSArray::from_retained_slice(&[port.into_super()]));

        let vsock = VZVirtioSocketDeviceConfiguration::new();
        configuration.setSocketDevices(&NSArray::from_retained_slice(&[vsock.into_super()]));

        let entropy = VZVirtioEntropyDeviceConfiguration::new();
        configuration.setEntropyDevices(&NSArray::from_retained_slice(&[entropy.into_super()]));
    }
    validate(&configuration)?;
    Ok(configuration)
}

/// A machine of nothing but a kernel, one vCPU and the least memory.
pub(super) fn small(kernel: &str) -> Retained<VZVirtualMachineConfiguration> {
    // SAFETY: as in `of`; the class's own limits are within its limits.
    unsafe {
        let configuration = VZVirtualMachineConfiguration::new();
        let loader =
            VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &file_url(kernel));
        configuration.setBootLoader(Some(&loader));
        configuration.setPlatform(&VZGenericPlatformConfiguration::new());
        configuration.setCPUCount(VZVirtualMachineConfiguration::minimumAllowedCPUCount());
        configuration.setMemorySize(VZVirtualMachineConfiguration::minimumAllowedMemorySize());
        configuration
    }
}

/// The framework's own judgement.
///
/// # Errors
/// In its words.
pub(super) fn validate(configuration: &VZVirtualMachineConfiguration) -> Result<(), String> {
    // SAFETY: it reads the object, which this thread has alone.
    unsafe { configuration.validateWithError() }.map_err(|error| words(&error))
}

/// What the framework allows on this host.
pub(super) fn limits() -> Limits {
    // SAFETY: class properties without arguments.
    unsafe {
        Limits {
            vcpus: VZVirtualMachineConfiguration::minimumAllowedCPUCount() as u64
                ..=VZVirtualMachineConfiguration::maximumAllowedCPUCount() as u64,
            memory: VZVirtualMachineConfiguration::minimumAllowedMemorySize()
                ..=VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
        }
    }
}

fn disk(disk: &Disk) -> Result<Retained<VZStorageDeviceConfiguration>, String> {
    // SAFETY: as in `of`.
    unsafe {
        let attachment = VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
            VZDiskImageStorageDeviceAttachment::alloc(),
            &file_url(&disk.path),
            disk.read_only,
            VZDiskImageCachingMode::Cached,
            VZDiskImageSynchronizationMode::Full,
        )
        .map_err(|error| format!("the disk {}: {}", disk.path, words(&error)))?;
        let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
            VZVirtioBlockDeviceConfiguration::alloc(),
            &attachment,
        );
        device.setBlockDeviceIdentifier(&NSString::from_str(&disk.identifier));
        Ok(device.into_super())
    }
}

fn file_url(path: &str) -> Retained<NSURL> {
    NSURL::fileURLWithPath_isDirectory(&NSString::from_str(path), false)
}

/// A handle that closes the descriptor when the last of those who share it is gone.
fn file_handle(descriptor: OwnedFd) -> Retained<NSFileHandle> {
    NSFileHandle::initWithFileDescriptor_closeOnDealloc(
        NSFileHandle::alloc(),
        descriptor.into_raw_fd(),
        true,
    )
}

/// An error in the framework's words, made safe to show, with its number.
pub(super) fn words(error: &NSError) -> String {
    let mut text = error.localizedDescription().to_string();
    if let Some(reason) = error.localizedFailureReason() {
        let reason = reason.to_string();
        if !text.contains(&reason) {
            text.push(' ');
            text.push_str(&reason);
        }
    }
    let text = format!("{text} ({} {})", error.domain(), error.code());
    printable(text.as_bytes()).chars().take(1000).collect()
}
