//! A server on loopback, and a meter that accepts CloudEvents and can fail.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::Sums;

/// The result of one call.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Stores the events and responds.
    Take,
    /// Stores nothing and responds with this status.
    Say(u16, &'static str),
    /// Stores nothing and never responds.
    Hang,
    /// Stores nothing and closes the connection.
    Reset,
    /// Stores the events and responds after the client has timed out.
    TakeTooLate,
    /// Responds with 400 if the batch contains this, and stores nothing.
    Refuse(String),
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    next: Mutex<VecDeque<Does>>,
    usually: Mutex<Option<Does>>,
    calls: Mutex<Vec<Call>>,
    taken: Mutex<Vec<Value>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) head: String,
    pub(crate) does: &'static str,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let address = serve_on_loopback(move |request| serving.call(request)).await;
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The results of the next calls, in order.
    pub(crate) fn then(&self, does: impl IntoIterator<Item = Does>) {
        self.shared.next.lock().unwrap().extend(does);
    }

    /// The result of all other calls.
    pub(crate) fn usually(&self, does: Does) {
        *self.shared.usually.lock().unwrap() = Some(does);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The result of each call.
    pub(crate) fn done(&self) -> Vec<&'static str> {
        self.calls().iter().map(|call| call.does).collect()
    }

    /// Every stored event, in order, with repetitions.
    pub(crate) fn taken(&self) -> Vec<Value> {
        self.shared.taken.lock().unwrap().clone()
    }

    /// The first event of each id, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut seen: HashMap<String, Value> = HashMap::new();
        let mut events = Vec::new();
        for event in self.taken() {
            let id = event["id"].as_str().unwrap().to_owned();
            if let Some(first) = seen.get(&id) {
                assert_eq!(*first, event, "one id, two events");
            } else {
                seen.insert(id, event.clone());
                events.push(event);
            }
        }
        events
    }

    /// Served requests by subject, each event counted once; the minutes of a subject come in order.
    pub(crate) fn bill(&self) -> Sums {
        let mut sums = Sums::new();
        let mut last: BTreeMap<String, String> = BTreeMap::new();
        for event in self.events() {
            let subject = event["subject"].as_str().unwrap().to_owned();
            let time = event["time"].as_str().unwrap().to_owned();
            if let Some(before) = last.insert(subject.clone(), time.clone()) {
                assert!(before <= time, "{subject}: {time} came after {before}");
            }
            *sums.entry(subject).or_default() += event["data"]["served"].as_u64().unwrap();
        }
        sums
    }
}

/// A request as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What a server does about a request.
pub(crate) enum Reply {
    /// The status line, headers and the body.
    Respond(String, String),
    /// Responds when the client has disconnected.
    TooLate,
    /// The status line, and a part of the body.
    Cut(String),
    /// Closes the connection.
    Reset,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::Respond(format!("{status} Said\r\n"), body.to_string())
    }
}

/// Serves on loopback until the runtime ends.
pub(crate) async fn serve_on_loopback(
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&answer)));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, answer: Arc<impl Fn(&Request) -> Reply>) {
    while let Some((head, body)) = read(&mut stream).await {
        let (head, body) = match answer(&Request { head, body }) {
            Reply::Respond(head, body) => (head, body),
            Reply::TooLate => {
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
            Reply::Cut(head) => {
                let answer = format!("HTTP/1.1 {head}content-length: 100\r\n\r\n{{");
                let _ = stream.write_all(answer.as_bytes()).await;
                return;
            }
            Reply::Reset => return,
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {head}content-length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Shared {
    fn call(&self, Request { head, body }: &Request) -> Reply {
        let events: Vec<Value> = serde_json::from_str(body).unwrap();
        let next = self.next.lock().unwrap().pop_front();
        let does = next
            .or_else(|| self.usually.lock().unwrap().clone())
            .unwrap_or(Does::Take);
        let (name, takes) = match &does {
            Does::Say(..) => ("say", false),
            Does::Hang => ("hang", false),
            Does::Reset => ("reset", false),
            Does::TakeTooLate => ("take too late", true),
            Does::Refuse(text) if body.contains(text.as_str()) => ("refuse", false),
            Does::Take | Does::Refuse(_) => ("take", true),
        };
        if takes {
            self.taken.lock().unwrap().extend(events.iter().cloned());
        }
        let head = head.clone();
        self.calls.lock().unwrap().push(Call { head, does: name });
        let head = match (does, takes) {
            (Does::Hang | Does::TakeTooLate, _) => return Reply::TooLate,
            (Does::Reset, _) => return Reply::Reset,
            (Does::Say(status, headers), _) => format!("{status} Said\r\n{headers}"),
            (_, true) => "204 No Content\r\n".to_owned(),
            (_, false) => "400 Bad Request\r\n".to_owned(),
        };
        Reply::Respond(head, String::new())
    }
}

/// The head and the body of a request.
async fn read(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let mut some = vec![0; 16 * 1024];
        let number = stream.read(&mut some).await.ok()?;
        if number == 0 {
            return None;
        }
        bytes.extend_from_slice(&some[..number]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        if body.len() >= length {
            return Some((head, body.to_owned()));
        }
    }
}
