//! Against Debian's `docker-registry` behind nginx, which answers 429 and 5xx, is slow, and loses its workers (F17, F18).

use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_registry_client::{Client, Options, Pushed, Repository, RetryPolicy, Warnings};

use crate::nginx::{Front, Nginx};
use crate::registry_process::{Kind, Registry};
use crate::{client, content, fetch, layer, named, quick};

type Opened = std::io::Result<Box<dyn Read + Send>>;

fn push(client: &Client, repository: &Repository, bytes: &[u8], progress: &dyn Fn(u64)) -> kiln_registry_client::Result<Pushed> {
    let open = |from| -> Opened { Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec()))) };
    client.push_blob(repository, &layer(bytes), &open, progress)
}

/// F17: while nginx answers so, nothing is lost; the pause that it asks for (a second) is kept. The harm ends with the second
/// retry, which the person hears of.
#[test]
fn f17_a_front_that_is_busy() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let Some(front) = Nginx::start(&registry.host(), Front::default()) else { return };
    let repository = named(&front.host(), "busy");
    for (number, status) in ["429", "500", "502", "503"].into_iter().enumerate() {
        let harm = front.harm(status);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (list, file) = (heard.clone(), harm.clone());
        let warnings = Warnings::to(move |warning| {
            let mut list = list.lock().unwrap();
            list.push(warning.to_string());
            if list.len() == 2 {
                std::fs::remove_file(&file).unwrap();
            }
        });
        let client = client(Options { warnings, ..quick() });
        let bytes = content(200_000 + number);
        for pulls in [false, true] {
            heard.lock().unwrap().clear();
            std::fs::write(&harm, "").unwrap();
            let started = Instant::now();
            if pulls {
                assert!(fetch(&client, &repository, &layer(&bytes)).1 == bytes, "{status}");
            } else {
                assert_eq!(push(&client, &repository, &bytes, &|_| {}).unwrap(), Pushed::Uploaded, "{status}");
            }
            assert!(started.elapsed() >= Duration::from_secs(2), "{status}: {:?}", started.elapsed());
            let heard = heard.lock().unwrap();
            assert!(heard.len() == 2 && heard.iter().all(|line| line.contains(status)), "{heard:?}");
        }
    }
}

/// F17: a worker that is killed takes all connections with it; the transfer goes on with the next one.
#[test]
fn f17_a_front_that_dies() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    for unbuffered in [false, true] {
        let Some(front) = Nginx::start(&registry.host(), Front { unbuffered, ..Front::default() }) else { return };
        let repository = named(&front.host(), &format!("dies{unbuffered}"));
        let bytes = content(24 << 20);
        let kills = Mutex::new(Vec::new());
        // Once in each third of what has gone, as far as this side knows.
        let kill = |done: u64| {
            let third = done / (8 << 20);
            let mut kills = kills.lock().unwrap();
            if (1..3).contains(&third) && !kills.contains(&third) {
                kills.push(third);
                front.kill_workers();
            }
        };
        let patient = Options { retry: RetryPolicy { attempts: 8, ..quick().retry }, ..quick() };
        let client =
            client(Options { retry: RetryPolicy { first_pause: Duration::from_millis(100), ..patient.retry }, ..patient });
        assert_eq!(push(&client, &repository, &bytes, &kill).unwrap(), Pushed::Uploaded, "unbuffered {unbuffered}");
        assert_eq!(std::mem::take(&mut *kills.lock().unwrap()).len(), 2);
        let mut sink = Vec::new();
        client.fetch_blob(&repository, &layer(&bytes), &mut sink, &kill).unwrap();
        assert!(sink == bytes && kills.lock().unwrap().len() == 2, "unbuffered {unbuffered}");
    }
}

/// F18: slow is not stalled, however long the whole takes.
#[test]
fn f18_a_front_that_is_slow() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let Some(front) = Nginx::start(&registry.host(), Front::default()) else { return };
    let bytes = content(1_300_000);
    push(&client(quick()), &named(&registry.host(), "slow"), &bytes, &|_| {}).unwrap();
    std::fs::write(front.harm("slow"), "").unwrap();
    let client = client(Options { stall_timeout: Duration::from_millis(1500), ..quick() });
    let started = Instant::now();
    let (result, came) = fetch(&client, &named(&front.host(), "slow"), &layer(&bytes));
    result.unwrap();
    assert!(came == bytes && started.elapsed() > Duration::from_secs(2), "{:?}", started.elapsed());
}
