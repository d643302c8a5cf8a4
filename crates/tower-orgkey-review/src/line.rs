//! One line of an audit trail, as `tower-orgkey-audit` writes it. Unknown fields are ignored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A text that is copied only if it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

#[derive(Deserialize)]
struct Line<'a> {
    class_uid: u32,
    #[serde(borrow)]
    metadata: Metadata<'a>,
    time: u64,
    end_time: u64,
    #[serde(default)]
    action_id: u32,
    #[serde(borrow)]
    status_code: Option<Text<'a>>,
    count: Option<u64>,
    #[serde(borrow)]
    actor: Option<Actor<'a>>,
    #[serde(borrow)]
    user: Option<User<'a>>,
    #[serde(borrow)]
    authorizations: Option<&'a RawValue>,
    unmapped: Option<Unmapped>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    product: Product<'a>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    sequence: u64,
}

#[derive(Deserialize)]
struct Product<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Actor<'a> {
    #[serde(borrow)]
    user: User<'a>,
}

#[derive(Deserialize)]
struct User<'a> {
    #[serde(borrow)]
    org: Option<Identified<'a>>,
    #[serde(borrow, default)]
    programmatic_credentials: Credentials<'a>,
}

#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

/// The first of a list, so that it needs no allocation.
#[derive(Default)]
struct Credentials<'a>(Option<Identified<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Credentials<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = Credentials<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of credentials")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Credentials(first))
            }
        }

        deserializer.deserialize_seq(First)
    }
}

#[derive(Deserialize)]
struct Unmapped {
    body_duration: Option<u64>,
    #[serde(default)]
    by_code: BTreeMap<String, u64>,
}

/// The product that writes the lines.
const PRODUCT: &str = "tower-orgkey";

/// An event, with the parts that a review needs.
pub(crate) struct Event<'a> {
    pub(crate) trail: u64,
    pub(crate) sequence: u64,
    /// When the request arrived, or the period of a count began.
    pub(crate) time: u64,
    /// When the event was complete.
    pub(crate) complete: u64,
    pub(crate) kind: Kind<'a>,
}

pub(crate) enum Kind<'a> {
    Request(Request<'a>),
    Lost(u64),
    /// How many, and how many by code.
    Suppressed(u64, BTreeMap<String, u64>),
}

pub(crate) struct Request<'a> {
    pub(crate) org: Option<Cow<'a, str>>,
    pub(crate) key: Option<Cow<'a, str>>,
    pub(crate) is_denied: bool,
    pub(crate) code: Cow<'a, str>,
    pub(crate) authorizations: Option<&'a str>,
}

/// Why a line is no event.
pub(crate) enum NotRead {
    /// JSON of another schema or product.
    Foreign,
    Malformed(&'static str),
}

const NOT_JSON: NotRead = NotRead::Malformed("not JSON, or cut off");

pub(crate) fn read(line: &[u8]) -> Result<Event<'_>, NotRead> {
    let text = std::str::from_utf8(line).map_err(|_| NotRead::Malformed("not UTF-8"))?;
    let Ok(line) = serde_json::from_str::<Line<'_>>(text) else {
        return Err(why_not(text));
    };
    if line.metadata.product.name != PRODUCT || ![6003, 3002, 1008].contains(&line.class_uid) {
        return Err(NotRead::Foreign);
    }
    let trail = trail(&line.metadata.uid, line.metadata.sequence)
        .ok_or(NotRead::Malformed("metadata.uid names no trail"))?;
    let (body, by_code) = match line.unmapped {
        Some(unmapped) => (unmapped.body_duration, unmapped.by_code),
        None => (None, BTreeMap::new()),
    };
    let complete = line
        .end_time
        .max(line.time.saturating_add(body.unwrap_or(0)));
    let kind = match (line.class_uid, line.count) {
        (1008, Some(count)) => Kind::Lost(count),
        (3002, Some(count)) => Kind::Suppressed(count, by_code),
        (1008, None) => return Err(NotRead::Malformed("a count is missing")),
        _ => {
            let user = line.actor.map(|actor| actor.user).or(line.user);
            let user = user.ok_or(NotRead::Malformed("no user"))?;
            let org = user.org.map(|org| org.uid);
            let key = user.programmatic_credentials.0.map(|key| key.uid);
            if !org.iter().chain(&key).all(|id| is_identifier(id)) {
                return Err(NotRead::Malformed("an identifier is outside its grammar"));
            }
            Kind::Request(Request {
                org,
                key,
                is_denied: line.action_id == 2,
                code: line.status_code.map_or(Cow::Borrowed("unknown"), |it| it.0),
                authorizations: line.authorizations.map(RawValue::get),
            })
        }
    };
    Ok(Event {
        trail,
        sequence: line.metadata.sequence,
        time: line.time,
        complete,
        kind,
    })
}

/// Returns the random number of the trail.
fn trail(uid: &str, sequence: u64) -> Option<u64> {
    let (trail, number) = uid.split_once('-')?;
    if trail.len() != 16 || number.parse() != Ok(sequence) {
        return None;
    }
    u64::from_str_radix(trail, 16).ok()
}

/// Whether it is an organization's code or a key's id: 1 to 255 visible ASCII characters.
pub(crate) fn is_identifier(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cold]
fn why_not(text: &str) -> NotRead {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        metadata: Of<'a>,
    }

    #[derive(Deserialize)]
    struct Of<'a> {
        #[serde(borrow)]
        product: Product<'a>,
    }

    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return NOT_JSON;
    }
    match serde_json::from_str::<Named<'_>>(text) {
        Ok(line) if line.metadata.product.name == PRODUCT => {
            NotRead::Malformed("a field is missing or has another type")
        }
        _ => NotRead::Foreign,
    }
}
