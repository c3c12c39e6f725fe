//! One process per running VM: owns the VMM, the guest link, the console and the workspace's recorded state.
