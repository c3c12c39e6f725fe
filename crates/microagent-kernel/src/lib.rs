//! Kernel store, sources, bzImage to vmlinux, module closure, initramfs.
