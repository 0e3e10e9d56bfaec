//! Random numbers from the kernel.

/// A random number, for jitter, and for names that are checked when they are used. The kernel's
/// pool is ready long before any of our programs starts; a failure leaves zero.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}
