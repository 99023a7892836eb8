use super::server::Server;
use std::time::{Duration, Instant};
use treelock::machine::Options;

#[test]
fn smoke() {
    let Some(server) = Server::start() else { return };
    let ttl = Duration::from_millis(300);
    let lock = server.open_with(Options::new().time_to_live(ttl));
    let start = Instant::now();
    let guard = lock.write("a/b").unwrap();
    eprintln!("first {:?} {guard:?} {guard}", start.elapsed());
    let other = server.open_with(Options::new().time_to_live(ttl));
    assert!(other.try_read("a").is_err());
    let second = other.write("a/c").unwrap();
    assert!(second.fence() > guard.fence());
    println!("{}", other.snapshot().unwrap());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let g = other.read("a/b").unwrap();
            (g.fence(), Instant::now())
        });
        while other.snapshot().unwrap().waiters.is_empty() {}
        std::thread::sleep(Duration::from_secs(1));
        let released = Instant::now();
        guard.release().unwrap();
        let (_, at) = waits.join().unwrap();
        eprintln!("hand over {:?}", at - released);
    });
    drop(second);
    let start = Instant::now();
    for _ in 0..1000 {
        drop(lock.write("a/b/c/d/e/f/g/h").unwrap());
    }
    eprintln!("pair {:?}", start.elapsed() / 1000);
}
