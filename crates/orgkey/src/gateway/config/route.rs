//! The tables `[[route]]`.

use std::fmt;
use std::ops::Range;

use http::Method;
use http::uri::Authority;
use toml::Spanned;
use tower_orgkey::ScopePolicy;

use super::section::{Problems, Section};
use super::value;
use crate::gateway::path;
use crate::gateway::routes::host_name as host_of;

/// The most bytes that the scopes of a route may have. A rejection names them in two headers, and proxies limit headers.
const MAX_SCOPES_LEN: usize = 1_024;

/// One route.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The methods.
    pub methods: Methods,
    /// The pattern of the path.
    pub pattern: String,
    /// The only host, if there is one, in lower case and without a port.
    pub host: Option<String>,
    /// What the route demands of a request.
    pub demand: Demand,
    /// The audience of assertions, if it is not that of the gateway.
    pub audience: Option<String>,
    /// The line of the route.
    pub line: usize,
    pub(super) span: Range<usize>,
}

/// The methods of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// All methods.
    Any,
    /// These methods. `GET` is also `HEAD`.
    Only(Vec<Method>),
}

/// What a route demands of a request.
#[derive(Clone, Debug)]
pub enum Demand {
    /// Nothing: no key is read.
    Nothing,
    /// A valid key of an organization.
    Key {
        /// The scopes that the key needs.
        scopes: Option<ScopePolicy>,
        /// The parameter of the path that names the organization of the key.
        organization: Option<String>,
    },
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(methods) => {
                let names: Vec<_> = methods.iter().map(Method::as_str).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl RouteConfig {
    /// Whether the last segment of the path has a parameter.
    pub(in crate::gateway) fn has_open_end(&self) -> bool {
        let path = self.pattern.trim_end_matches('/');
        let (_, last) = path.rsplit_once('/').unwrap_or_default();
        last.contains('{')
    }
}

/// The route as it is written: methods and pattern.
impl fmt::Display for RouteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.methods, self.pattern)
    }
}

pub(super) fn route(
    mut section: Section<'_>,
    allow_semicolons: bool,
    problems: &mut Problems<'_>,
) -> Option<RouteConfig> {
    let written: Option<Spanned<String>> = section.required("match", problems);
    let host: Option<Spanned<String>> = section.optional("host", problems);
    let scopes: Option<Spanned<Vec<String>>> = section.optional("scopes", problems);
    let any_of: Option<Spanned<Vec<Vec<String>>>> = section.optional("any_of", problems);
    let organization: Option<Spanned<String>> = section.optional("organization", problems);
    let public: Option<Spanned<bool>> = section.optional("public", problems);
    let audience = value(section.optional("assertion_audience", problems));
    let span = section.span.clone();
    section.finish(problems);

    let is_public = public.is_some_and(Spanned::into_inner);
    if is_public && (scopes.is_some() || any_of.is_some() || organization.is_some()) {
        let message =
            "a public route reads no key: remove `public`, or what is demanded of the key";
        problems.add(&span, message);
    }
    let host = host.and_then(|host| host_name(&host, problems));
    let policy = policy(scopes, any_of, problems);
    let written = written?;
    let (methods, pattern) = match methods_and_pattern(written.get_ref(), allow_semicolons) {
        Ok(parsed) => parsed,
        Err(message) => {
            problems.add(&written.span(), format!("`match`: {message}"));
            return None;
        }
    };
    if let Some(parameter) = &organization
        && !parameters(&pattern).any(|name| name == *parameter.get_ref() && !name.starts_with('*'))
    {
        let name = parameter.get_ref();
        let message = format!("`organization`: the path has no parameter `{{{name}}}`");
        problems.add(&parameter.span(), message);
    }
    let demand = if is_public {
        Demand::Nothing
    } else {
        Demand::Key {
            scopes: policy,
            organization: value(organization),
        }
    };
    Some(RouteConfig {
        methods,
        pattern,
        host,
        demand,
        audience,
        line: problems.line(span.start),
        span,
    })
}

fn methods_and_pattern(
    text: &str,
    allow_semicolons: bool,
) -> Result<(Methods, String), &'static str> {
    let mut words = text.split_ascii_whitespace();
    let (Some(methods), Some(pattern), None) = (words.next(), words.next(), words.next()) else {
        return Err("expected methods and a path, as in `GET,POST /reports/{id}`");
    };
    let methods = if methods == "*" {
        Methods::Any
    } else {
        let names = methods.split(',').map(method);
        Methods::Only(names.collect::<Result<_, _>>()?)
    };
    if path::check(pattern, allow_semicolons).is_err() || pattern.contains('?') {
        return Err("no request can match the path: it is not absolute, or it is ambiguous");
    }
    matchit::Router::new().insert(pattern, ()).map_err(
        |_| "the path is not a valid pattern: parameters are `{name}`, or `{*rest}` at the end",
    )?;
    let mut seen = Vec::new();
    for name in parameters(pattern) {
        if seen.contains(&name) {
            return Err("a parameter has the name of another one");
        }
        seen.push(name);
    }
    Ok((methods, pattern.to_owned()))
}

/// Returns the names of the parameters of a valid pattern. That of a rest begins with `*`.
fn parameters(pattern: &str) -> impl Iterator<Item = String> {
    // Two braces are a literal one.
    let pattern = pattern.replace("{{", "").replace("}}", "");
    let names: Vec<_> = pattern
        .split('{')
        .filter_map(|part| Some(part.split_once('}')?.0.to_owned()))
        .collect();
    names.into_iter()
}

fn method(name: &str) -> Result<Method, &'static str> {
    if name == "HEAD" {
        return Err("`HEAD` is matched as `GET`: write `GET`");
    }
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'-')
    {
        return Err("a method is written in upper case, and methods are separated by commas alone");
    }
    name.parse().map_err(|_| "expected a method")
}

fn host_name(host: &Spanned<String>, problems: &mut Problems<'_>) -> Option<String> {
    let name = host.get_ref();
    let is_alone = name
        .parse::<Authority>()
        .is_ok_and(|authority| authority.host() == name);
    if is_alone {
        return host_of(name);
    }
    problems.add(&host.span(), "`host` must be a name without a port");
    None
}

fn policy(
    scopes: Option<Spanned<Vec<String>>>,
    any_of: Option<Spanned<Vec<Vec<String>>>>,
    problems: &mut Problems<'_>,
) -> Option<ScopePolicy> {
    let (span, alternatives) = match (scopes, any_of) {
        (None, None) => return None,
        (Some(scopes), None) => (scopes.span(), vec![scopes.into_inner()]),
        (None, Some(any_of)) => (any_of.span(), any_of.into_inner()),
        (Some(scopes), Some(_)) => {
            problems.add(&scopes.span(), "`scopes` and `any_of` cannot be combined");
            return None;
        }
    };
    if alternatives.is_empty() {
        problems.add(&span, "`any_of` must not be empty: no key would satisfy it");
    }
    let is_too_long = |names: &Vec<String>| {
        names.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_SCOPES_LEN
    };
    if alternatives.iter().any(is_too_long) {
        problems.add(&span, "the scopes have more than 1,024 bytes");
    }
    match ScopePolicy::try_new(alternatives) {
        Ok(policy) => Some(policy),
        Err(error) => {
            problems.add(&span, error.to_string());
            None
        }
    }
}
