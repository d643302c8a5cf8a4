//! Writes events as copies of earlier ones.
//!
//! An event has some 1,200 bytes, and few of them differ between the requests of a route. A template is an event that was
//! written before: numbers and ids are replaced in place, and the peer and the user are written between its parts.

use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use http::{Method, StatusCode};
use tower_orgkey::observer::Requirements;
use tower_orgkey::{KeyId, OrgCode};

use super::document::{endpoint, is_listed, millis, span, user};
use super::json::{Field, Json, Mark, is_plain};
use crate::event::{Actor, AuditEvent, AuditedRequest, BodyEnd, Outcome, Source};

/// The most templates, of some 2 KB each. There is one per route, status and numbers of digits.
const TEMPLATES: usize = 256;

/// The most keys whose object `user` is kept, in some 250 bytes each.
const USERS: usize = 1_024;

/// The templates of a sink.
#[derive(Default)]
pub(crate) struct Templates {
    /// Each at the remainder of a hash. Empty until the first event.
    held: Vec<Option<Template>>,
    hasher: RandomState,
    users: Users,
}

impl Templates {
    /// Appends the same as [`AuditEvent::write_json`].
    pub(crate) fn write(&mut self, event: &AuditEvent, out: &mut Vec<u8>) {
        let Some(request) = event.request().filter(|request| has_template(request)) else {
            return event.write_json(out);
        };
        let numbers = Numbers::of(event, request);
        if self.held.is_empty() {
            self.held.resize_with(TEMPLATES, || None);
        }
        let places = self.held.len();
        let hash = self.hasher.hash_one((request.route(), numbers.digits()));
        // Truncated on purpose.
        #[allow(clippy::cast_possible_truncation)]
        let held = &mut self.held[hash as usize % places];
        if let Some(template) = held
            && template.shape.is_of(event, request)
            && template.fill(request, &numbers)
        {
            template.append(request, &mut self.users, out);
        } else {
            *held = Template::write(event, request, &numbers, out);
        }
    }
}

/// Whether the event has the fields of most. Only such events have templates.
fn has_template(request: &AuditedRequest) -> bool {
    matches!(request.outcome, Outcome::Allowed)
        && matches!(request.actor, Actor::Organization { .. })
        && request.path.is_none()
        && is_listed(&request.method)
        && request
            .request_id()
            .is_none_or(|id| is_plain(id.as_bytes()))
}

/// The object `user` of keys, each at a place that follows from the address of its id: entries of the cache of one key share it.
#[derive(Default)]
struct Users(Vec<Option<User>>);

struct User {
    org: OrgCode,
    key_id: KeyId,
    json: Vec<u8>,
}

impl Users {
    /// Appends what [`user`] appends.
    fn append(&mut self, actor: &Actor, json: &mut Json<'_>) {
        let Actor::Organization {
            org,
            key_id: Some(key_id),
            user_id: None,
            ..
        } = actor
        else {
            return user(json, actor);
        };
        if self.0.is_empty() {
            self.0.resize_with(USERS, || None);
        }
        // Strings are aligned to sixteen bytes.
        let place = (key_id.as_str().as_ptr().addr() >> 4) % self.0.len();
        match &self.0[place] {
            Some(held) if held.key_id == *key_id && held.org == *org => {
                json.plain(&held.json);
            }
            _ => {
                let start = json.out.len();
                user(json, actor);
                self.0[place] = Some(User {
                    org: org.clone(),
                    key_id: key_id.clone(),
                    json: json.out[start..].to_vec(),
                });
            }
        }
    }
}

/// What the constant parts of an event depend on.
struct Shape {
    source: Option<Arc<Source>>,
    method: Method,
    route: Option<Box<str>>,
    status: Option<StatusCode>,
    requirements: Requirements,
    is_cached: Option<bool>,
    is_stale: Option<bool>,
    body_end: Option<BodyEnd>,
}

impl Shape {
    fn of(event: &AuditEvent, request: &AuditedRequest) -> Self {
        Self {
            source: event.source.clone(),
            method: request.method.clone(),
            route: request.route().map(Into::into),
            status: request.status,
            requirements: request.requirements.clone(),
            is_cached: request.is_cached(),
            is_stale: request.is_stale(),
            body_end: request.body_end(),
        }
    }

    fn is_of(&self, event: &AuditEvent, request: &AuditedRequest) -> bool {
        let address = |source: &Option<Arc<Source>>| source.as_ref().map(Arc::as_ptr);
        address(&self.source) == address(&event.source)
            && self.method == request.method
            && self.route.as_deref() == request.route()
            && self.status == request.status
            && self.requirements == request.requirements
            && self.is_cached == request.is_cached()
            && self.is_stale == request.is_stale()
            && self.body_end == request.body_end()
    }
}

/// The numbers of an event, each at the place of its [`Field`].
#[derive(Clone, Copy)]
struct Numbers([u64; NUMBERS]);

const NUMBERS: usize = 6;

impl Numbers {
    fn of(event: &AuditEvent, request: &AuditedRequest) -> Self {
        let (since, until) = span(request);
        let (length, after) = match request.body {
            Some(body) => (body.bytes, millis(body.after)),
            None => (0, 0),
        };
        let mut numbers = [0; NUMBERS];
        for (field, number) in [
            (Field::Sequence, event.sequence),
            (Field::Time, millis(since)),
            (Field::EndTime, millis(until)),
            (Field::Duration, millis(request.duration)),
            (Field::BodyLength, length),
            (Field::BodyDuration, after),
        ] {
            numbers[field as usize] = number;
        }
        Self(numbers)
    }

    /// How many digits the numbers have that vary from request to request.
    fn digits(self) -> u32 {
        let varying = [Field::Duration, Field::BodyLength, Field::BodyDuration];
        varying.into_iter().fold(0, |digits, field| {
            digits * 32 + self.0[field as usize].checked_ilog10().unwrap_or(0)
        })
    }
}

struct Template {
    shape: Shape,
    /// An event without its endpoint and its user.
    text: Vec<u8>,
    /// Where the endpoint and the user belong.
    endpoint: usize,
    user: usize,
    /// Where the id of the request begins, and its length if there is one.
    ids: Vec<usize>,
    id_len: Option<usize>,
    /// The numbers in `text`, and where they are.
    numbers: Numbers,
    places: [Vec<Range<usize>>; NUMBERS],
}

impl Template {
    /// Appends an event, and returns the template that it is.
    #[cold]
    fn write(
        event: &AuditEvent,
        request: &AuditedRequest,
        numbers: &Numbers,
        out: &mut Vec<u8>,
    ) -> Option<Self> {
        let start = out.len();
        let mut marks = Vec::new();
        event.write(&mut Json::marking(out, &mut marks));
        let mut template = Self {
            shape: Shape::of(event, request),
            text: Vec::with_capacity(out.len() - start),
            endpoint: 0,
            user: 0,
            ids: Vec::new(),
            id_len: request.request_id().map(str::len),
            numbers: *numbers,
            places: Default::default(),
        };
        // What was left out so far, and the end of what was copied.
        let (mut left_out, mut copied) = (start, start);
        for Mark { field, at } in marks {
            let place = at.start - left_out..at.end - left_out;
            match field {
                Field::Endpoint => template.endpoint = place.start,
                Field::User => template.user = place.start,
                Field::RequestId => {
                    template.ids.push(place.start);
                    continue;
                }
                number => {
                    template.places[number as usize].push(place);
                    continue;
                }
            }
            template.text.extend_from_slice(&out[copied..at.start]);
            left_out += at.len();
            copied = at.end;
        }
        template.text.extend_from_slice(&out[copied..]);
        (0 < template.endpoint && template.endpoint < template.user).then_some(template)
    }

    /// Replaces the id and the numbers. `false` if one of them has another length.
    fn fill(&mut self, request: &AuditedRequest, numbers: &Numbers) -> bool {
        let id = request.request_id();
        if id.map(str::len) != self.id_len {
            return false;
        }
        for (at, id) in self.ids.iter().zip(id.into_iter().cycle()) {
            self.text[*at..][..id.len()].copy_from_slice(id.as_bytes());
        }
        for n in 0..NUMBERS {
            // Most are the same as before.
            let number = numbers.0[n];
            if number == self.numbers.0[n] {
                continue;
            }
            self.numbers.0[n] = number;
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(number).as_bytes();
            for at in &self.places[n] {
                if at.len() != digits.len() {
                    return false;
                }
                self.text[at.clone()].copy_from_slice(digits);
            }
        }
        true
    }

    fn append(&self, request: &AuditedRequest, users: &mut Users, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text[..self.endpoint]);
        let json = &mut Json::new(out);
        endpoint(json, request);
        json.out
            .extend_from_slice(&self.text[self.endpoint..self.user]);
        users.append(&request.actor, json);
        json.out.extend_from_slice(&self.text[self.user..]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tokio::time::Instant;
    use tower_orgkey::observer::{EarlyEnd, Requirement};
    use tower_orgkey::{Rejection, RequestObservation, ScopePolicy};

    use super::*;
    use crate::event::{AuditEventKind, Body, Route};
    use crate::peer::AuditPeer;

    fn requirements(of: &[Requirement]) -> Requirements {
        let observation = RequestObservation::default();
        for requirement in of {
            observation.record_requirement(requirement.clone());
        }
        observation.requirements()
    }

    fn actor(org: &'static str, key_id: Option<&'static str>, is_stale: bool) -> Actor {
        Actor::Organization {
            org: OrgCode::from_static(org),
            key_id: key_id.map(KeyId::from_static),
            user_id: None,
            is_cached: !is_stale,
            is_stale,
        }
    }

    fn allowed() -> AuditedRequest {
        AuditedRequest {
            time: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            arrived: Instant::now(),
            request_id: Some("7f".into()),
            method: Method::GET,
            route: Some(Route::Named("/reports".into())),
            path: None,
            peer: None,
            peer_pseudonym: None,
            actor: actor("org_1", Some("key_1"), false),
            requirements: Requirements::default(),
            outcome: Outcome::Allowed,
            status: Some(StatusCode::OK),
            duration: Duration::ZERO,
            body: Some(Body {
                end: BodyEnd::Ended,
                after: Duration::from_millis(1),
                bytes: 2,
            }),
        }
    }

    type Change = Box<dyn Fn(&mut AuditedRequest)>;

    /// Requests that differ from [`allowed`] in one part each.
    fn requests() -> Vec<AuditedRequest> {
        let scope = |name, is_met| Requirement::scopes(ScopePolicy::new([[name]]), is_met);
        let body = |end, millis, bytes| {
            let after = Duration::from_millis(millis);
            Some(Body { end, after, bytes })
        };
        let changes: Vec<Change> = vec![
            Box::new(|_| {}),
            Box::new(|it| it.time += Duration::from_millis(987_654_321)),
            Box::new(|it| it.time = UNIX_EPOCH),
            Box::new(|it| it.request_id = Some("8e".into())),
            Box::new(|it| it.request_id = Some("7".into())),
            Box::new(|it| it.request_id = None),
            Box::new(|it| it.request_id = Some("a\"b\\c".into())),
            Box::new(|it| it.method = Method::POST),
            Box::new(|it| it.method = Method::HEAD),
            Box::new(|it| it.method = Method::from_bytes(b"PURGE").unwrap()),
            Box::new(|it| it.route = Some(Route::Named("/reparts".into()))),
            Box::new(|it| it.route = Some(Route::Named("/\"{id}\"".into()))),
            Box::new(|it| it.route = None),
            Box::new(|it| it.path = Some("/reports/7".into())),
            Box::new(|it| {
                it.peer = Some("[::1]:80".parse::<std::net::SocketAddr>().unwrap().into());
            }),
            Box::new(|it| it.peer = Some(AuditPeer::from(std::net::IpAddr::from([10, 0, 0, 1])))),
            Box::new(|it| it.peer_pseudonym = Some([b'7'; 32])),
            Box::new(|it| it.actor = actor("org_22", Some("key_1"), false)),
            Box::new(|it| it.actor = actor("org_1", None, false)),
            Box::new(|it| it.actor = actor("org_1", Some("key_1"), true)),
            Box::new(|it| it.actor = Actor::Anonymous),
            Box::new(move |it| it.requirements = requirements(&[scope("a", true)])),
            Box::new(move |it| it.requirements = requirements(&[scope("b", true)])),
            Box::new(move |it| it.requirements = requirements(&[scope("a", false)])),
            Box::new(move |it| {
                it.requirements = requirements(&[scope("a", true), scope("b", true)]);
            }),
            Box::new(|it| it.outcome = Outcome::Rejected(Rejection::invalid_token())),
            Box::new(|it| it.outcome = Outcome::EndedEarly(EarlyEnd::Dropped)),
            Box::new(|it| it.status = Some(StatusCode::GATEWAY_TIMEOUT)),
            Box::new(|it| it.status = Some(StatusCode::NOT_FOUND)),
            Box::new(|it| it.duration = Duration::from_millis(9)),
            Box::new(|it| it.duration = Duration::from_millis(10)),
            Box::new(move |it| it.body = body(BodyEnd::Dropped, 1, 2)),
            Box::new(move |it| it.body = body(BodyEnd::Ended, 1_000, 2)),
            Box::new(move |it| it.body = body(BodyEnd::Ended, 1, u64::MAX)),
            Box::new(|it| it.body = None),
        ];
        let request_with = |change: Change| {
            let mut request = allowed();
            change(&mut request);
            request
        };
        changes.into_iter().map(request_with).collect()
    }

    fn event(request: &AuditedRequest, source: &Arc<Source>, sequence: u64) -> AuditEvent {
        AuditEvent {
            kind: AuditEventKind::Request(request.clone()),
            source: Some(Arc::clone(source)),
            sequence,
        }
    }

    #[track_caller]
    fn assert_same(templates: &mut Templates, event: &AuditEvent) {
        let (mut expected, mut out) = (Vec::new(), b"before".to_vec());
        event.write_json(&mut expected);
        templates.write(event, &mut out);
        let text = |json: &[u8]| String::from_utf8(json.to_vec()).unwrap();
        assert_eq!(text(&out), format!("before{}", text(&expected)));
    }

    /// One place for all templates.
    fn crowded() -> Templates {
        Templates {
            held: vec![None],
            hasher: RandomState::default(),
            users: Users(vec![None]),
        }
    }

    #[test]
    fn templates_write_what_events_write() {
        let sources = [Source::new(1, "api"), Source::new(2, "\"other\"")].map(Arc::new);
        let requests = requests();
        let mut templates = crowded();
        for first in &requests {
            for second in &requests {
                for (source, sequence) in [(0, 9), (0, 10), (1, 8)] {
                    assert_same(&mut templates, &event(first, &sources[0], 8));
                    assert_same(&mut templates, &event(second, &sources[source], sequence));
                }
            }
        }
    }

    #[test]
    fn a_template_is_used_again() {
        let source = Arc::new(Source::new(1, "api"));
        let mut templates = crowded();
        let mut texts = Vec::new();
        for sequence in 10..90 {
            let mut request = allowed();
            request.actor = actor("org_2", Some("key_of_another_length"), false);
            assert_same(&mut templates, &event(&request, &source, sequence));
            texts.extend(templates.held[0].iter().map(|held| held.text.as_ptr()));
        }
        assert_eq!(texts.len(), 80);
        assert!(texts.iter().all(|text| *text == texts[0]), "a new template");
    }
}
