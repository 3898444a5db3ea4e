//! Work beside the requests: one process that takes jobs from a queue in shared memory, and something that is done every ten seconds.
//! There is one of each, however many workers there are, and it is begun again if it dies.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use phalanx::state::{Change, Counter, Table};
use phalanx::{Request, Routes, Server, pooled};

const QUEUE: &[u8] = b"jobs";

/// A queue of numbers, as the value of one key.
#[derive(Clone, Copy)]
struct Queue(Table);

impl Queue {
    fn push(&self, job: u8) -> bool {
        let mut is_room = true;
        let pushed = self.0.update(QUEUE, |old| {
            let jobs = [old.unwrap_or_default(), &[job]].concat();
            is_room = jobs.len() <= 100;
            if is_room { Change::Set(jobs, None) } else { Change::Keep }
        });
        pushed.is_ok() && is_room
    }

    fn pop(&self) -> Option<u8> {
        let mut job = None;
        let _always_fits = self.0.update(QUEUE, |old| match old {
            Some([first, rest @ ..]) => {
                job = Some(*first);
                Change::Set(rest.to_vec(), None)
            }
            _ => Change::Keep,
        });
        job
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let queue = Queue(Table::new("jobs", 1, 8, 100)?);
    let (done, ticks) = (Counter::new("jobs_done_total", "jobs done")?, Counter::new("ticks_total", "ticks")?);
    let routes = Routes::new()
        .post("/jobs/{number}", move |request: &Request| {
            match request.param("number").and_then(|number| number.parse().ok()) {
                Some(number) if queue.push(number) => (202, "queued\n"),
                Some(_) => (503, "there are 100 jobs already\n"),
                None => (400, "a job is a number from 0 to 255\n"),
            }
        })
        .get("/done", pooled(move |_: &Request| format!("{} jobs, {} ticks\n", done.get(), ticks.get())));
    let server = Server::builder()
        .app(routes)
        .background("worker of jobs", move || {
            loop {
                match queue.pop() {
                    Some(_job) => done.increment(),
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        })
        .every("10s", move || ticks.increment());
    Ok(server.build().main())
}
