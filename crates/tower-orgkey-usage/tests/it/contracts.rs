//! What the sinks send, held against what the vendors' descriptions of their APIs require. `contracts.json` states it in our words,
//! with the source of each.

use jsonschema::Validator;
use kinde_emulator::Endpoint;
use serde_json::{Map, Value, json};
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{UsageLayer, UsageSink};
use url::form_urlencoded;

use crate::billing::world::World;
use crate::kit::{app, next_minute, read_times, usage, wall};
use crate::meters::{Kind, Meter};
use crate::sums::{lago, open_meter, stripe};

struct Contract {
    media_type: String,
    schema: Validator,
    /// What an event must have.
    required: Vec<String>,
}

impl Contract {
    fn of(meter: &str) -> Self {
        let all: Value = serde_json::from_str(include_str!("contracts.json")).unwrap();
        let contract = &all[meter];
        let options = jsonschema::options().should_validate_formats(true);
        let schema = &contract["schema"];
        let event = ["/properties/events/items", "/items", ""];
        let event = event.into_iter().find_map(|at| schema.pointer(at));
        let required = event.unwrap()["required"].as_array().unwrap().iter();
        let required: Vec<String> = required
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert!(!required.is_empty());
        Self {
            required,
            media_type: contract["media_type"].as_str().unwrap().to_owned(),
            schema: options.build(&contract["schema"]).unwrap(),
        }
    }

    /// The body fits, and does not if something that is required is missing or a name is unknown.
    fn assert(&self, body: &Value) {
        let problems = self.schema.iter_errors(body).map(|error| error.to_string());
        let problems: Vec<String> = problems.collect();
        assert!(problems.is_empty(), "{problems:?} in {body}");
        let event = ["/events/0", "/0", ""];
        let event = event
            .into_iter()
            .find(|at| body.pointer(at).is_some_and(Value::is_object));
        let with = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut body = body.clone();
            let event = body.pointer_mut(event.unwrap()).unwrap();
            change(event.as_object_mut().unwrap());
            body
        };
        let unknown = with(&|event| drop(event.insert("quantity".to_owned(), json!(1))));
        assert!(!self.schema.is_valid(&unknown), "{unknown}");
        for name in &self.required {
            let incomplete = with(&|event| drop(event.remove(name)));
            assert!(!self.schema.is_valid(&incomplete), "{incomplete}");
        }
    }
}

/// Pushes the requests of two organizations, and checks each call that stores events.
async fn check<S: UsageSink>(
    kind: Kind,
    contract: &str,
    sink: impl Fn(&Meter, &TestWallClock) -> S,
) {
    let wall = wall();
    let meter = Meter::start(kind, &wall).await;
    let usage: UsageLayer = usage(&wall).build().unwrap();
    let mut pusher = usage.handle().pusher(sink(&meter, &wall)).build().unwrap();
    for org in ["org_1", "org_2"] {
        read_times(&app(&usage), 3, &format!("key.{org}.k1")).await;
    }
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.pushed, 2);

    let contract = Contract::of(contract);
    let mut checked = 0;
    for call in meter.calls() {
        if call
            .head
            .starts_with("post /v2/billing/meter_event_session ")
        {
            continue;
        }
        let content_type = format!("content-type: {}\r\n", contract.media_type);
        assert!(
            format!("{}\r\n", call.head).contains(&content_type),
            "{}",
            call.head
        );
        let body = if contract.media_type.ends_with("json") {
            call.json()
        } else {
            let pairs = form_urlencoded::parse(call.body.as_bytes());
            let pairs = pairs.map(|(name, value)| (name.into_owned(), Value::from(&*value)));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        contract.assert(&body);
        checked += 1;
    }
    assert!(checked > 0);
}

#[tokio::test]
async fn stripe_events_fit_the_api() {
    let stream = |meter: &Meter, wall: &TestWallClock| stripe(meter, wall, false);
    check(Kind::StripeStream, "Stripe stream", stream).await;
    let v1 = |meter: &Meter, wall: &TestWallClock| stripe(meter, wall, true);
    check(Kind::StripeV1, "Stripe version 1", v1).await;
}

#[tokio::test]
async fn openmeter_events_fit_the_api() {
    check(Kind::OpenMeter, "OpenMeter", |meter, _| open_meter(meter)).await;
}

#[tokio::test]
async fn lago_events_fit_the_api() {
    check(Kind::Lago, "Lago", |meter, _| lago(meter)).await;
}

#[tokio::test]
async fn kinde_usage_fits_the_api() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 3).await;
    assert_eq!(process.send().await.accepted, 1);
    let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
    let contract = Contract::of("Kinde");
    assert_eq!(sent.header("content-type"), Some(&*contract.media_type));
    let names = [
        "customer_agreement_id",
        "billing_feature_code",
        "meter_value",
        "meter_type_code",
    ];
    let members = names.map(|name| (name.to_owned(), sent.field(name).unwrap().into()));
    let body = Value::Object(members.into_iter().collect());
    let length = body.to_string().len().to_string();
    assert_eq!(
        sent.header("content-length"),
        Some(&*length),
        "other members"
    );
    contract.assert(&body);
}
