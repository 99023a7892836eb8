//! Connections of an engine that are used again.
//!
//! A call takes a connection that nobody uses, or a new one, and gives it back if all went well. After an error all connections go that
//! are as old as the one that failed, and the next call asks anew which server is the right one. Otherwise a client might speak to an
//! old server and to the one in its place in turns, and each would be a copy of the other that has lost something.

use crate::sync::Mutex;

pub(super) struct Pool<C>(Mutex<Idle<C>>);

/// Connections that nobody uses: one for calls, one that listens, and rarely more.
struct Idle<C> {
    connections: Vec<C>,
    /// So many times all connections have been given up.
    generation: u64,
}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Pool(Mutex::new(Idle { connections: Vec::new(), generation: 0 }))
    }
}

impl<C> Pool<C> {
    /// Runs something on a connection, which is used again if that works.
    pub(super) fn run<R, E>(
        &self,
        connect: impl FnOnce() -> Result<C, E>,
        run: impl FnOnce(&mut C) -> Result<R, E>,
    ) -> Result<R, E> {
        let (idle, generation) = {
            let mut idle = self.0.lock();
            (idle.connections.pop(), idle.generation)
        };
        let ran = idle.map_or_else(connect, Ok).and_then(|mut connection| {
            let done = run(&mut connection)?;
            Ok((connection, done))
        });
        let mut idle = self.0.lock();
        let is_of_now = idle.generation == generation;
        match ran {
            Ok((connection, done)) => {
                if is_of_now {
                    idle.connections.push(connection);
                }
                Ok(done)
            }
            Err(error) => {
                if is_of_now {
                    idle.connections.clear();
                    idle.generation += 1;
                }
                Err(error)
            }
        }
    }

    /// How many connections nobody uses.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.0.lock().connections.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first connection may lead to an old server, and the second to the one in its place.
    #[test]
    fn connection_that_is_older_than_a_failure_is_not_used_again() {
        let pool = Pool::default();
        let fails = |_: &mut u32| Err::<(), _>("it fails");
        let done = pool.run(
            || Ok(1),
            |first| {
                assert_eq!(pool.run(|| Ok(2), fails), Err("it fails"));
                Ok::<_, &str>(*first)
            },
        );
        assert_eq!((done, pool.idle()), (Ok(1), 0));
        assert_eq!(pool.run(|| Ok(3), |third| Ok::<_, &str>(*third)), Ok(3));
        assert_eq!(pool.idle(), 1);
    }
}
