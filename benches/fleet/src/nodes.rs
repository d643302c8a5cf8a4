//! The processes, as the bench sees them. Each reads commands and answers each with a line.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use kinde_emulator::IssuedKey;

use crate::World;

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("a process that reads");
    }

    /// Returns the numbers of the next answer.
    fn answer(&mut self) -> Vec<u64> {
        let line = self.output.next().expect("an answer").expect("an answer");
        line.split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keys_command(keys: &[IssuedKey]) -> String {
    let keys: Vec<_> = keys.iter().map(IssuedKey::secret).collect();
    format!("keys {}", keys.join(" "))
}

pub(crate) struct Nodes(Vec<Process>);

pub(crate) struct Reach {
    pub(crate) took: Duration,
    pub(crate) applied: usize,
}

impl Nodes {
    /// Starts processes, and waits until each follows the engine and sees all others.
    pub(crate) fn start(world: &World, count: usize, soft_ttl: Duration) -> Self {
        let start = |n: usize| {
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .args(["node", &format!("node-{n}"), &world.engine.url()])
                .arg(world.issuer.issuer_url())
                .args([world.issuer.client_id(), world.issuer.client_secret()])
                .arg(soft_ttl.as_secs().to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a process");
            Process {
                input: child.stdin.take().expect("a pipe"),
                output: BufReader::new(child.stdout.take().expect("a pipe")).lines(),
                child,
            }
        };
        let mut nodes = Self((0..count).map(start).collect());
        nodes.all(&format!("follow {count}"));
        nodes
    }

    /// Sends a command to all processes, and returns the answers.
    fn all(&mut self, command: &str) -> Vec<Vec<u64>> {
        for process in &mut self.0 {
            process.send(command);
        }
        self.0.iter_mut().map(Process::answer).collect()
    }

    pub(crate) fn set_keys(&mut self, keys: &[IssuedKey]) {
        self.all(&keys_command(keys));
    }

    /// Requests each key once on each node, all nodes at the same time. Returns the longest time of a node.
    pub(crate) fn request_all(&mut self) -> Duration {
        let answers = self.all("request");
        assert!(answers.iter().all(|answer| answer[1] == 0), "{answers:?}");
        let longest = answers.iter().map(|answer| answer[0]).max();
        Duration::from_micros(longest.unwrap_or(0))
    }

    /// Begins requests of the keys at this rate per node.
    pub(crate) fn begin_load(&mut self, rate: usize) {
        self.all(&format!("load {rate}"));
    }

    /// Returns the number of requests and of those that were rejected.
    pub(crate) fn end_load(&mut self) -> (u64, u64) {
        let answers = self.all("stop");
        let sum = |at: usize| answers.iter().map(|answer| answer[at]).sum();
        (sum(0), sum(1))
    }

    /// Invalidates a key id on one node, and waits for the acknowledgements.
    pub(crate) fn revoke(&mut self, node: usize, id: &str) -> Reach {
        self.0[node].send(&format!("revoke {id}"));
        let answer = self.0[node].answer();
        Reach {
            took: Duration::from_micros(answer[0]),
            applied: usize::try_from(answer[1]).expect("a number of nodes"),
        }
    }

    /// Sends requests of a key on all nodes. Returns how many were accepted.
    pub(crate) fn accepted(&mut self, key: &str, requests: usize) -> u64 {
        let answers = self.all(&format!("get {requests} {key}"));
        answers.iter().map(|answer| answer[0]).sum()
    }

    /// Sends hits on the first node: their times in nanoseconds, 50 % and 99 %, and how many were rejected.
    pub(crate) fn hits(&mut self, count: usize) -> [u64; 3] {
        self.0[0].send(&format!("hits {count}"));
        let answer = self.0[0].answer();
        answer.try_into().expect("three numbers")
    }

    /// Requests each key on one of the nodes.
    pub(crate) fn request_parts(&mut self, keys: &[IssuedKey]) {
        let parts = keys.chunks(keys.len().div_ceil(self.0.len()));
        for (process, keys) in self.0.iter_mut().zip(parts) {
            process.send(&keys_command(keys));
            process.answer();
            process.send("request");
        }
        for process in &mut self.0 {
            assert_eq!(process.answer()[1], 0, "rejected");
        }
    }

    /// Returns how long the first node has used a processor. Its runtime has one thread.
    pub(crate) fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/schedstat", self.0[0].child.id());
        let times = std::fs::read_to_string(path).expect("the times of a process");
        let nanoseconds = times.split(' ').next().expect("a time");
        Duration::from_nanos(nanoseconds.parse().expect("a number"))
    }

    /// Returns the resident memory of the first node, in megabytes.
    pub(crate) fn megabytes(&mut self) -> f64 {
        let status = format!("/proc/{}/status", self.0[0].child.id());
        let status = std::fs::read_to_string(status).expect("the status of a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes = kilobytes.and_then(|number| number.parse::<f64>().ok());
        kilobytes.expect("kilobytes") / 1_024.0
    }

    /// Invalidates so many key ids on one node, and waits until all are sent.
    pub(crate) fn invalidate(&mut self, node: usize, count: usize) {
        self.0[node].send(&format!("invalidate {count}"));
        self.0[node].answer();
    }

    /// Returns the last update of the first node.
    pub(crate) fn position(&mut self) -> u64 {
        self.0[0].send("position");
        self.0[0].answer()[0]
    }
}
