//! How a long-lived coordinator uses the C library's heap (mallopt(3), malloc_trim(3)).

/// One heap for all threads, and large pieces outside of it: the store's thread frees memory that
/// the loop has allocated, and heaps of their own would keep it. With a million jobs queued this
/// saves a third of the resident set.
pub(crate) fn be_frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before there are other threads; mallopt has no other preconditions.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Pieces of this many bytes come from mmap(2), and go back when they are freed.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 256 * 1024;

/// Gives free memory back. Takes some milliseconds when there is much: for moments when much has
/// just been freed.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
