//! Meters on a socket, on a steered clock: what they remember, what they reject, and how they say that they have an event.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_orgkey_usage::test_util::TestWallClock;

use crate::collector::{Reply, Request, serve_on_loopback};
use crate::kit::Sums;

const DAY: u64 = 24 * 60 * 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Counts an id once in 32 days.
    OpenMeter,
    /// Counts an identifier once in 24 h, and accepts events of the last 35 days. Sessions of 15 min.
    StripeStream,
    /// The same, one at a time; says so if it has an event.
    StripeV1,
    /// Counts a `transaction_id` once, and rejects a whole batch that has a known one.
    Lago,
}

/// What happens to a call instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    Works,
    /// Stores nothing, and responds with this status.
    Says(u16),
    /// Stores nothing, and closes the connection.
    Resets,
    /// Stores, and closes the connection.
    TakesAndResets,
    /// Stores, and responds with this status.
    TakesAndSays(u16),
}

pub(crate) struct Meter {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    kind: Kind,
    clock: TestWallClock,
    /// Replies show the clock, and the stream of Stripe accepts events that it rejects later.
    shows_date: bool,
    faults: VecDeque<Fault>,
    injected: Vec<Fault>,
    calls: Vec<Request>,
    /// When an event was counted, by id.
    known: BTreeMap<String, u64>,
    /// Every event that was counted: its id, its customer, and its value.
    bill: Vec<(String, String, u64)>,
    /// The times of these events.
    times: Vec<u64>,
    /// When each session began, by number.
    sessions: Vec<u64>,
}

struct Event {
    id: String,
    customer: String,
    value: u64,
    time: u64,
}

impl Meter {
    pub(crate) async fn start(kind: Kind, clock: &TestWallClock) -> Self {
        let state = Arc::new(Mutex::new(State {
            kind,
            clock: clock.clone(),
            shows_date: false,
            faults: VecDeque::new(),
            injected: Vec::new(),
            calls: Vec::new(),
            known: BTreeMap::new(),
            bill: Vec::new(),
            times: Vec::new(),
            sessions: Vec::new(),
        }));
        let serving = Arc::clone(&state);
        let answer = move |request: &Request| {
            let mut state = serving.lock().unwrap();
            let now = state.now();
            match state.call(request) {
                Reply::Respond(head, body) if state.shows_date => {
                    let date = jiff::Timestamp::from_second(now.try_into().unwrap()).unwrap();
                    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT");
                    Reply::Respond(format!("{head}date: {date}\r\n"), body)
                }
                reply => reply,
            }
        };
        let address = serve_on_loopback(answer).await;
        Self {
            url: format!("http://{address}"),
            state,
        }
    }

    /// The next calls that store events fail in these ways.
    pub(crate) fn then(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    pub(crate) fn shows_date(&self) {
        self.state.lock().unwrap().shows_date = true;
    }

    pub(crate) fn works(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// Returns after the calls that are on their way: a later call is answered. Twice, because the first may overtake them.
    pub(crate) async fn arrived(&self) {
        for _ in 0..2 {
            let address = self.url.trim_start_matches("http://");
            let mut connection = TcpStream::connect(address).await.unwrap();
            let call = b"GET /arrived HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
            connection.write_all(call).await.unwrap();
            assert!(connection.read(&mut [0; 64]).await.unwrap() > 0);
        }
    }

    pub(crate) fn injected(&self) -> Vec<Fault> {
        self.state.lock().unwrap().injected.clone()
    }

    pub(crate) fn calls(&self) -> Vec<Request> {
        self.state.lock().unwrap().calls.clone()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions.len()
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        let state = self.state.lock().unwrap();
        state.bill.iter().any(|(billed, ..)| billed == id)
    }

    /// The times of the events that were counted.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.state.lock().unwrap().times.clone()
    }

    /// The sum of each customer, with everything that was counted twice.
    pub(crate) fn bill(&self) -> Sums {
        let mut sums = Sums::new();
        for (_, customer, value) in &self.state.lock().unwrap().bill {
            let org = customer
                .trim_start_matches("cus_")
                .trim_start_matches("sub_");
            *sums.entry(org.to_owned()).or_default() += value;
        }
        sums
    }
}

impl State {
    fn now(&self) -> u64 {
        let now = self.clock.now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs()
    }

    fn call(&mut self, request: &Request) -> Reply {
        if request.head.starts_with("get /arrived ") {
            return Reply::json(200, &json!({}));
        }
        self.calls.push(request.clone());
        if request
            .head
            .starts_with("post /v2/billing/meter_event_session ")
        {
            assert!(request.head.contains("authorization: bearer sk_test_0123"));
            self.sessions.push(self.now());
            let token = format!("session-{}", self.sessions.len());
            return Reply::json(200, &json!({ "authentication_token": token }));
        }
        let fault = self.faults.pop_front();
        self.injected.extend(fault);
        match fault {
            None | Some(Fault::Works) => self.store(request),
            Some(Fault::Says(status)) => Reply::json(status, &json!({})),
            Some(Fault::Resets) => Reply::Reset,
            Some(Fault::TakesAndResets) => {
                self.store(request);
                Reply::Reset
            }
            Some(Fault::TakesAndSays(status)) => {
                self.store(request);
                Reply::json(status, &json!({}))
            }
        }
    }

    fn store(&mut self, request: &Request) -> Reply {
        match self.kind {
            Kind::OpenMeter => self.open_meter(request),
            Kind::StripeStream => self.stripe_stream(request),
            Kind::StripeV1 => self.stripe_v1(request),
            Kind::Lago => self.lago(request),
        }
    }

    fn open_meter(&mut self, request: &Request) -> Reply {
        assert!(request.head.starts_with("post /api/v3/openmeter/events "));
        for event in request.json().as_array().unwrap() {
            self.count(Event {
                id: text(&event["id"]),
                customer: text(&event["subject"]),
                value: event["data"]["served"].as_u64().unwrap(),
                time: seconds(&event["time"]),
            });
        }
        Reply::json(202, &json!({}))
    }

    fn stripe_stream(&mut self, request: &Request) -> Reply {
        assert!(
            request
                .head
                .starts_with("post /v2/billing/meter_event_stream ")
        );
        assert!(request.head.contains("stripe-version: 2024-09-30.acacia"));
        let (_, session) = request
            .head
            .split_once("authorization: bearer session-")
            .unwrap();
        let session: usize = session.lines().next().unwrap().parse().unwrap();
        if self.now() >= self.sessions[session - 1] + 15 * 60 {
            let code = "billing_meter_event_session_expired";
            return Reply::json(401, &json!({ "error": { "code": code } }));
        }
        let body = request.json();
        let events = body["events"].as_array().unwrap();
        let events: Vec<Event> = events
            .iter()
            .map(|event| {
                assert_eq!(event["event_name"], "api_requests");
                Event {
                    id: text(&event["identifier"]),
                    customer: text(&event["payload"]["stripe_customer_id"]),
                    value: text(&event["payload"]["value"]).parse().unwrap(),
                    time: seconds(&event["timestamp"]),
                }
            })
            .collect();
        let is_valid = events.iter().all(|event| self.stripe_accepts(event));
        if events.len() > 100 || !is_valid && !self.shows_date {
            return Reply::json(400, &json!({ "error": { "message": "invalid" } }));
        }
        for event in events {
            if self.stripe_accepts(&event) {
                self.count(event);
            }
        }
        Reply::json(200, &json!({}))
    }

    fn stripe_v1(&mut self, request: &Request) -> Reply {
        assert!(request.head.starts_with("post /v1/billing/meter_events "));
        let mut fields: BTreeMap<_, _> = form(&request.body);
        let event = Event {
            id: fields.remove("identifier").unwrap(),
            customer: fields.remove("payload[stripe_customer_id]").unwrap(),
            value: fields.remove("payload[value]").unwrap().parse().unwrap(),
            time: fields.remove("timestamp").unwrap().parse().unwrap(),
        };
        assert_eq!(
            fields,
            BTreeMap::from([("event_name".to_owned(), "api_requests".to_owned())])
        );
        if !self.stripe_accepts(&event) {
            return Reply::json(400, &json!({ "error": { "message": "invalid" } }));
        }
        let message = format!("An event already exists with identifier {}.", event.id);
        if self.count(event) {
            Reply::json(200, &json!({ "object": "billing.meter_event" }))
        } else {
            let error = json!({ "type": "invalid_request_error", "message": message });
            Reply::json(400, &json!({ "error": error }))
        }
    }

    fn stripe_accepts(&self, event: &Event) -> bool {
        assert!(event.id.len() <= 100);
        let now = self.now();
        event.time + 35 * DAY >= now && event.time <= now + 5 * 60
    }

    fn lago(&mut self, request: &Request) -> Reply {
        assert!(request.head.starts_with("post /api/v1/events/batch "));
        let body = request.json();
        let events = body["events"].as_array().unwrap();
        assert!(events.len() <= 100);
        let known = events.iter().enumerate();
        let known =
            known.filter(|(_, event)| self.known.contains_key(&text(&event["transaction_id"])));
        let details: BTreeMap<String, Value> = known
            .map(|(place, _)| {
                let error = json!({ "transaction_id": ["value_already_exist"] });
                (place.to_string(), error)
            })
            .collect();
        if !details.is_empty() {
            let error =
                json!({ "status": 422, "code": "validation_errors", "error_details": details });
            return Reply::json(422, &error);
        }
        for event in events {
            self.count(Event {
                id: text(&event["transaction_id"]),
                customer: text(&event["external_subscription_id"]),
                value: event["properties"]["requests"].as_u64().unwrap(),
                time: event["timestamp"].as_u64().unwrap(),
            });
        }
        Reply::json(200, &json!({}))
    }

    /// Counts an event unless its id is remembered. Returns whether it was counted.
    fn count(&mut self, event: Event) -> bool {
        let memory = match self.kind {
            Kind::OpenMeter => 32 * DAY,
            Kind::StripeStream | Kind::StripeV1 => DAY,
            Kind::Lago => u64::MAX,
        };
        let now = self.now();
        let is_known = self
            .known
            .get(&event.id)
            .is_some_and(|since| now - since < memory);
        if !is_known {
            self.known.insert(event.id.clone(), now);
            self.times.push(event.time);
            self.bill.push((event.id, event.customer, event.value));
        }
        !is_known
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn seconds(time: &Value) -> u64 {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    time.as_second().try_into().unwrap()
}

fn form(body: &str) -> BTreeMap<String, String> {
    let fields = url::form_urlencoded::parse(body.as_bytes());
    fields.into_owned().collect()
}

/// Moves the clock.
pub(crate) fn forward(clock: &TestWallClock, by: Duration) {
    clock.set(clock.now() + by);
}
