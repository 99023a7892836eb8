//! What an error of a request does.

/// Writes what an error of a request does in every scope. A scope may have one more variant, for what only its requests
/// fail with: of a type that has a `kind`.
macro_rules! request_error {
    ($error:ident $(, $own:ident($cause:ty))?) => {
        impl std::fmt::Display for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $error::WouldBlock => f.write_str("the lock could not be taken without waiting"),
                    $error::TimedOut => f.write_str("the deadline passed before the lock could be taken"),
                    $error::Deadlock(deadlock) => std::fmt::Display::fmt(deadlock, f),
                    $error::Path(error) => std::fmt::Display::fmt(error, f),
                    $($error::$own(error) => std::fmt::Display::fmt(error, f),)?
                }
            }
        }

        impl std::error::Error for $error {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self {
                    // Each is shown by this error already.
                    $error::WouldBlock | $error::TimedOut | $error::Deadlock(_) | $error::Path(_) => None,
                    $($error::$own(error) => error.source(),)?
                }
            }
        }

        impl From<$error> for std::io::Error {
            fn from(error: $error) -> Self {
                let kind = match &error {
                    $error::WouldBlock => std::io::ErrorKind::WouldBlock,
                    $error::TimedOut => std::io::ErrorKind::TimedOut,
                    $error::Deadlock(_) => std::io::ErrorKind::Deadlock,
                    $error::Path(_) => std::io::ErrorKind::InvalidInput,
                    $($error::$own(error) => error.kind(),)?
                };
                std::io::Error::new(kind, error)
            }
        }

        impl From<$crate::PathError> for $error {
            fn from(error: $crate::PathError) -> Self {
                $error::Path(error)
            }
        }

        $(
            impl From<$cause> for $error {
                fn from(error: $cause) -> Self {
                    $error::$own(error)
                }
            }
        )?

        #[cfg(feature = "tracing")]
        impl $crate::trace::Refusal for $error {
            fn deadlock(&self) -> Option<&$crate::Deadlock> {
                match self {
                    $error::Deadlock(deadlock) => Some(deadlock),
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use request_error;
