// Package powerloss is a disk that forgets, for tests: one file, served by
// FUSE, that keeps what was written to it in memory until it is flushed, and
// can be put into any state that a power cut may leave behind. It knows bytes
// and flushes, and nothing of what is kept on it.
//
// A loop device on that file turns a block flush into an fsync of the file, so
// a file system on it sees what a disk with a volatile write cache does.
//
// # Tapes
//
// The disk records all writes and flushes since it was last loaded. That
// recording, a Tape, can be played up to any event: what was flushed by then is
// there, and of the rest nothing (Drop) or an arbitrary part in an arbitrary
// order (Reorder), page by page, as caches and torn writes leave it. So one run
// of an operation is enough to try a power cut at each of its moments. Cut
// does the same live: from then on all input and output fails.
//
// The file is served by a process of its own: a reader that waits for a page
// of a mapped file cannot be stopped for a garbage collection, which would
// stop the server in the same process as well.
package powerloss
