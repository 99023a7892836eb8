//! A WebDAV server over a directory, whose requests lock the sub-trees that they touch.
//!
//! Renaming, copying and deleting a folder take many steps on a disk. Here nobody sees them half done: each request holds,
//! from its first step to the last byte of its answer, what it reads shared and what it writes exclusively. Requests for
//! different sub-trees go on side by side.
//!
//! | file | |
//! |---|---|
//! | `touch.rs` | which sub-trees a request reads and writes |
//! | `server.rs` | the requests, each under its locks; the page at `/` |
//! | `page.html` | who holds and who waits, live |
//! | `load.rs` | clients that replace and copy folders, and look whether one is torn |

pub mod load;
pub mod server;
pub mod touch;
