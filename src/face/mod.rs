//! What users see of every scope, written once: macros, since the scopes differ in nothing but their types.
//!
//! They are macros and not one generic lock, so that each scope has methods, guards and errors of its own: signatures,
//! documentation and messages of the compiler name its types and no others.
//!
//! | file | concept |
//! |---|---|
//! | `error.rs` | errors of requests: how they are shown, and what they become |

mod error;

pub(crate) use error::request_error;
