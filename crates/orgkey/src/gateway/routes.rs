//! Finds the route of a request.
//!
//! A route matches if its methods, its host and its path do. Of several, the one with the most specific path wins, by the rules of
//! [`matchit`]; of equal paths, the one for the host; of these, the one that names the method. A path that ends in `/{*rest}` also
//! matches when the rest is empty: a service reads `/admin/` as part of `/admin/{*rest}`, and [`matchit`] does not.

use std::collections::{BTreeSet, HashMap};

use http::Method;
use matchit::{InsertError, Router};

use super::config::{Demand, Methods, RouteConfig};
use super::path;

/// The routes of a configuration.
#[derive(Debug)]
pub(super) struct Routes {
    all: Vec<RouteConfig>,
    allow_semicolons: bool,
    by_host: HashMap<String, Table>,
    of_other_hosts: Table,
}

/// The routes of one host.
#[derive(Debug)]
struct Table {
    /// Few, so that comparing them is cheaper than a hash.
    by_method: Vec<(Method, Paths)>,
    of_other_methods: Paths,
}

/// The routes of one host and method.
#[derive(Debug, Default)]
struct Paths {
    as_sent: Router<usize>,
    /// The same routes, for folded paths.
    folded: Router<usize>,
    /// Whether a pattern differs from its folded form.
    differ: bool,
}

/// The route of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The index of the route.
    pub(super) index: usize,
    /// The parameter that must be the organization of the key, as it was sent.
    pub(super) organization: Option<String>,
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// The path can be read in several ways. Holds the end of the sentence "the path …".
    Ambiguous(&'static str),
    /// No route matches.
    NoRoute,
    /// Some routes have a host, and the proxy does not say which host is requested.
    NoHost,
}

impl Routes {
    /// Returns the matcher of routes without conflicts.
    pub(super) fn new(routes: Vec<RouteConfig>, allow_semicolons: bool) -> Self {
        Self::build(routes, allow_semicolons, &mut Vec::new())
    }

    /// Returns the routes that conflict with another one, by their index, with a message.
    pub(super) fn conflicts(routes: &[RouteConfig]) -> Vec<(usize, String)> {
        let mut conflicts = Vec::new();
        Self::build(routes.to_vec(), false, &mut conflicts);
        // A conflict is in the tables of several methods and hosts.
        let mut seen = BTreeSet::new();
        conflicts.retain(|(index, _)| seen.insert(*index));
        conflicts
    }

    fn build(
        routes: Vec<RouteConfig>,
        allow_semicolons: bool,
        conflicts: &mut Vec<(usize, String)>,
    ) -> Self {
        let hosts: BTreeSet<_> = routes
            .iter()
            .filter_map(|route| route.host.clone())
            .collect();
        let of_other_hosts = Table::build(&routes, None, conflicts);
        let tables = hosts.into_iter().map(|host| {
            let table = Table::build(&routes, Some(&host), conflicts);
            (host, table)
        });
        Self {
            by_host: tables.collect(),
            of_other_hosts,
            all: routes,
            allow_semicolons,
        }
    }

    pub(super) fn get(&self, index: usize) -> &RouteConfig {
        &self.all[index]
    }

    /// Finds the route of a request. The target may have a query, the host a port.
    pub(super) fn find(
        &self,
        method: &Method,
        host: Option<&str>,
        target: &str,
    ) -> Result<Found, NotFound> {
        let path = path::of_target(target);
        let is_plain = path::is_plain(path);
        if !is_plain {
            path::check(path, self.allow_semicolons).map_err(NotFound::Ambiguous)?;
        }
        // Some services read `delete` as `DELETE`.
        if method
            .as_str()
            .bytes()
            .any(|byte| byte.is_ascii_lowercase())
        {
            return Err(NotFound::Ambiguous(
                "is requested by a method in lower case",
            ));
        }
        let paths = self.table(host)?.paths(method);
        let found = paths.as_sent.at(path);
        let sent = found.as_ref().ok().map(|found| *found.value);
        if !paths.is_read_alike(path, is_plain, sent) {
            return Err(NotFound::Ambiguous(
                "matches another route when it is decoded, in lower case, or without its last slash",
            ));
        }
        let found = found.map_err(|_| NotFound::NoRoute)?;
        let route = &self.all[*found.value];
        if !is_plain
            && route.has_open_end()
            && !paths.is_read_alike_without_format(path, *found.value)
        {
            return Err(NotFound::Ambiguous(
                "matches another route without the format at its end",
            ));
        }
        let organization = match &route.demand {
            Demand::Key { .. } if !is_plain && !path::is_of_uri(path) => {
                return Err(NotFound::Ambiguous("is not a path of a URI"));
            }
            Demand::Key {
                organization: Some(name),
                ..
            } => found.params.get(name).map(str::to_owned),
            _ => None,
        };
        Ok(Found {
            index: *found.value,
            organization,
        })
    }

    /// Returns the routes of a host. If any route has one, a host that a service may read differently is ambiguous.
    fn table(&self, host: Option<&str>) -> Result<&Table, NotFound> {
        if self.by_host.is_empty() {
            return Ok(&self.of_other_hosts);
        }
        let host = host_name(host.ok_or(NotFound::NoHost)?).ok_or(NotFound::Ambiguous(
            "is requested at a host that is not valid",
        ))?;
        Ok(self.by_host.get(&host).unwrap_or(&self.of_other_hosts))
    }
}

/// Returns the name of a host in lower case, without its port and the dot at its end.
pub(super) fn host_name(host: &str) -> Option<String> {
    let authority: http::uri::Authority = host.parse().ok()?;
    let name = authority.host();
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && !host.contains('@')).then(|| name.to_ascii_lowercase())
}

impl Table {
    fn build(
        routes: &[RouteConfig],
        host: Option<&str>,
        conflicts: &mut Vec<(usize, String)>,
    ) -> Self {
        let mut candidates: Vec<_> = routes
            .iter()
            .enumerate()
            .filter(|(_, route)| route.host.is_none() || route.host.as_deref() == host)
            .collect();
        // Stable: the routes for the host first.
        candidates.sort_by_key(|(_, route)| route.host.is_none());
        let named = candidates
            .iter()
            .flat_map(|(_, route)| match &route.methods {
                Methods::Any => &[][..],
                Methods::Only(methods) => methods,
            });
        let mut methods: Vec<Method> = Vec::new();
        for method in named {
            if !methods.contains(method) {
                methods.push(method.clone());
            }
        }
        let by_method = methods
            .into_iter()
            .map(|method| {
                let paths = Paths::build(&candidates, Some(&method), conflicts);
                (method, paths)
            })
            .collect();
        Self {
            by_method,
            of_other_methods: Paths::build(&candidates, None, conflicts),
        }
    }

    fn paths(&self, method: &Method) -> &Paths {
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let of_method = self.by_method.iter().find(|(known, _)| known == method);
        of_method.map_or(&self.of_other_methods, |(_, paths)| paths)
    }
}

/// How specific a route is beside its path: whether it is for any host and for any method.
type Rank = (bool, bool);

impl Paths {
    /// Whether all readings of a path have the route that it has as it was sent. A [plain](path::is_plain) path is folded.
    fn is_read_alike(&self, path: &str, is_plain: bool, sent: Option<usize>) -> bool {
        let route = |path: &str| self.folded.at(path).ok().map(|found| *found.value);
        if is_plain || path::is_folded(path) {
            // If no pattern differs, this is the same lookup.
            return !self.differ || route(path) == sent;
        }
        let folded = path::folded(path);
        // A service may cut the parameters of segments.
        route(&folded) == sent && route(&path::without_parameters(&folded)) == sent
    }

    /// Whether a path has the same route without a [format](path::without_format), which a service may cut off to choose its
    /// response, or none.
    fn is_read_alike_without_format(&self, path: &str, sent: usize) -> bool {
        let folded = path::without_parameters(&path::folded(path));
        let mut routes = path::without_format(&folded).filter_map(|path| self.folded.at(path).ok());
        routes.all(|found| *found.value == sent)
    }

    fn build(
        candidates: &[(usize, &RouteConfig)],
        method: Option<&Method>,
        conflicts: &mut Vec<(usize, String)>,
    ) -> Self {
        let mut matching: Vec<(Rank, usize, &RouteConfig)> = candidates
            .iter()
            .filter_map(|&(index, route)| {
                let is_any = match &route.methods {
                    Methods::Any => true,
                    Methods::Only(methods) => method
                        .is_some_and(|method| methods.contains(method))
                        .then_some(false)?,
                };
                Some(((route.host.is_none(), is_any), index, route))
            })
            .collect();
        matching.sort_by_key(|(rank, ..)| *rank);
        let mut paths = Self::default();
        let mut inserted: HashMap<String, (Rank, usize)> = HashMap::new();
        for &(rank, index, route) in &matching {
            match inserted.get(&shape(&route.pattern)) {
                // The more specific route is there already.
                Some((other, _)) if *other < rank => continue,
                Some((_, other)) => {
                    let line = candidates
                        .iter()
                        .find(|(index, _)| index == other)
                        .map_or(0, |(_, route)| route.line);
                    conflicts.push((
                        index,
                        format!("`{route}` is a duplicate of the route in line {line}"),
                    ));
                    continue;
                }
                None => {}
            }
            inserted.insert(shape(&route.pattern), (rank, index));
            let as_sent = paths.as_sent.insert(&route.pattern, index);
            let pattern = path::folded_pattern(&route.pattern);
            paths.differ |= pattern != route.pattern;
            let folded = paths.folded.insert(pattern, index);
            if let Err(error) = as_sent.and(folded) {
                let message = match error {
                    InsertError::Conflict { with } => format!(
                        "`{route}` cannot be told apart from the path `{with}` of another route"
                    ),
                    error => format!("`{route}`: {error}"),
                };
                conflicts.push((index, message));
            }
        }
        for (_, index, route) in matching {
            if let Some(pattern) = without_rest(&route.pattern) {
                paths.add_empty_rest(pattern, index);
            }
        }
        paths
    }

    /// Adds the path of a route whose rest is empty, unless a route has this path.
    fn add_empty_rest(&mut self, pattern: &str, index: usize) {
        // Of routes that differ in their host or method alone, the first one is the most specific. If only the folded path belongs
        // to another route, the path is ambiguous.
        if self.as_sent.insert(pattern, index).is_ok() {
            let _ = self.folded.insert(path::folded_pattern(pattern), index);
            self.differ = true;
        }
    }
}

/// Returns the part before `{*rest}`.
fn without_rest(pattern: &str) -> Option<&str> {
    let (before, rest) = pattern.rsplit_once('/')?;
    rest.starts_with("{*").then(|| &pattern[..=before.len()])
}

/// Returns a pattern without the names of its parameters.
fn shape(pattern: &str) -> String {
    // Two braces are a literal one.
    let pattern = pattern.replace("{{", "%7b").replace("}}", "%7d");
    let mut shape = String::with_capacity(pattern.len());
    let mut is_name = false;
    for c in pattern.chars() {
        match c {
            '{' => {
                is_name = true;
                shape.push(c);
            }
            '}' => {
                is_name = false;
                shape.push(c);
            }
            '*' => shape.push(c),
            _ if is_name => {}
            c => shape.push(c),
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Config;
    use proptest::prelude::*;

    fn config(routes: &str) -> Result<Config, Vec<crate::gateway::config::Problem>> {
        let head = "[listen]\nchecks = '127.0.0.1:0'\n[issuer]\nkind = 'kinde'\nurl = 'https://acme.kinde.com'\n\
                    client_id = 'id'\nclient_secret_env = 'SECRET'\n";
        Config::parse(&format!("{head}{routes}"))
    }

    fn routes(lines: &[&str]) -> Routes {
        let text = lines.iter().fold(String::new(), |text, line| {
            text + "[[route]]
" + line + "
"
        });
        let config = config(&text).unwrap();
        Routes::new(config.routes, false)
    }

    fn found(routes: &Routes, method: &Method, host: Option<&str>, target: &str) -> Option<usize> {
        match routes.find(method, host, target) {
            Ok(found) => Some(found.index),
            Err(NotFound::NoRoute) => None,
            Err(not_found) => panic!("{target}: {not_found:?}"),
        }
    }

    #[test]
    fn most_specific_route_wins() {
        let routes = routes(&[
            "match = '* /orgs/{org}/{*rest}'",
            "match = 'GET /orgs/{org}/users'",
            "match = '* /orgs/{id}/users'",
            "match = 'GET,POST /reports'",
        ]);
        let at = |method: Method, target| found(&routes, &method, None, target);
        assert_eq!(at(Method::GET, "/orgs/a/users"), Some(1));
        assert_eq!(at(Method::HEAD, "/orgs/a/users?x=/../"), Some(1));
        assert_eq!(at(Method::POST, "/orgs/a/users"), Some(2));
        assert_eq!(at(Method::POST, "/orgs/a/keys/1"), Some(0));
        assert_eq!(at(Method::POST, "/orgs/a/"), Some(0));
        assert_eq!(at(Method::POST, "/reports"), Some(3));
        assert_eq!(at(Method::DELETE, "/reports"), None);
        assert_eq!(at(Method::GET, "/"), None);
    }

    #[test]
    fn routes_of_a_host_come_first() {
        let routes = routes(&[
            "match = 'GET /a'",
            "match = '* /a'\nhost = 'API.example.com'",
            "match = 'GET /b'\nhost = 'api.example.com'",
        ]);
        for host in [
            "api.example.com",
            "API.Example.com:8443",
            "api.example.com.",
        ] {
            assert_eq!(
                found(&routes, &Method::GET, Some(host), "/a"),
                Some(1),
                "{host}"
            );
        }
        let other = Some("example.com");
        assert_eq!(found(&routes, &Method::GET, other, "/a"), Some(0));
        assert_eq!(found(&routes, &Method::GET, other, "/b"), None);
        let missing = routes.find(&Method::GET, None, "/a");
        assert_eq!(missing, Err(NotFound::NoHost));
        for host in ["x@api.example.com", "api%2Eexample.com", ""] {
            let result = routes.find(&Method::GET, Some(host), "/a");
            assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{host:?}");
        }
    }

    #[test]
    fn methods_in_lower_case_are_refused() {
        let routes = routes(&["match = '* /{*rest}'", "match = 'DELETE /a'"]);
        assert_eq!(found(&routes, &Method::DELETE, None, "/a"), Some(1));
        for method in ["delete", "Delete", "get"] {
            let method = method.parse().unwrap();
            let result = routes.find(&method, None, "/a");
            assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{method}");
        }
    }

    #[test]
    fn parameters_hide_no_route() {
        let mut routes = routes(&["match = '* /{*rest}'", "match = '* /admin'"]);
        routes.allow_semicolons = true;
        for target in [
            "/admin;x=1",
            "/admin%3bx",
            "/Admin;x",
            "/;/admin",
            "/;x=1/admin",
            "/admin/;x",
            "/%3b/admin",
        ] {
            let result = routes.find(&Method::GET, None, target);
            assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{target}");
        }
        assert_eq!(found(&routes, &Method::GET, None, "/other;x=1"), Some(0));
    }

    #[test]
    fn an_empty_rest_belongs_to_its_route() {
        let routes = routes(&[
            "match = '* /{*rest}'",
            "match = '* /orgs/{org}/{*rest}'",
            "match = 'POST /orgs/{id}/{*rest}'",
            "match = 'GET /files/'",
            "match = '* /files/{*rest}'",
            "match = '* /admin'",
            "match = '* /admin/{*rest}'",
        ]);
        let at = |method: Method, target| found(&routes, &method, None, target);
        assert_eq!(at(Method::GET, "/"), Some(0));
        assert_eq!(at(Method::GET, "/orgs/a/"), Some(1));
        assert_eq!(at(Method::POST, "/orgs/a/"), Some(2));
        assert_eq!(at(Method::GET, "/files/"), Some(3));
        assert_eq!(at(Method::POST, "/files/"), Some(4));
        assert_eq!(at(Method::GET, "/admin"), Some(5));
        assert_eq!(at(Method::GET, "/admin/a"), Some(6));
        // Without its last slash, it is another route.
        let result = routes.find(&Method::GET, None, "/admin/");
        assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{result:?}");
    }

    #[test]
    fn no_other_route_takes_the_path_before_a_rest() {
        let routes = routes(&["match = '* /{*rest}'", "match = '* /orgs/{org}/{*rest}'"]);
        // A service may read it as `/orgs/a/`, which needs an organization.
        let result = routes.find(&Method::GET, None, "/orgs/a");
        assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{result:?}");
    }

    #[test]
    fn other_readings_of_a_path_are_refused() {
        let routes = routes(&[
            "match = 'GET /Reports/{id}'",
            "match = '* /{*rest}'\npublic = true",
            "match = '* /x/{*rest}'",
            "match = '* /x/admin'",
        ]);
        for target in [
            "/reports/1",
            "/REPORTS/1",
            "/Reports/1/",
            "/%52eports/1",
            "/x/admin/",
            "/x/Admin",
            "/x/%61dmin",
        ] {
            let result = routes.find(&Method::GET, None, target);
            assert!(
                matches!(result, Err(NotFound::Ambiguous(_))),
                "{target} {result:?}"
            );
        }
        assert_eq!(found(&routes, &Method::GET, None, "/Reports/1"), Some(0));
        assert_eq!(found(&routes, &Method::GET, None, "/x/other/"), Some(2));
    }

    #[test]
    fn formats_hide_no_route() {
        let routes = routes(&[
            "match = 'GET /reports/{id}'",
            "match = 'GET /reports/export'",
            "match = 'GET /reports/export.xml'",
            "match = '* /{*rest}'",
            "match = 'GET /files/{id}/'",
            "match = 'GET /files/all/'",
            "match = '* /admin/users'",
        ]);
        for target in [
            "/reports/export.csv",
            "/reports/export%2Ecsv",
            "/reports/Export.csv",
            "/reports/export.csv.gz",
            "/admin/users.json",
            "/files/all.csv/",
        ] {
            let result = routes.find(&Method::GET, None, target);
            assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{target}");
        }
        for (target, expected) in [
            ("/reports/1.csv", 0),
            ("/reports/.export", 0),
            ("/reports/export.xml", 2),
            ("/app.min.js", 3),
            ("/admin/users.d/a", 3),
        ] {
            let found = found(&routes, &Method::GET, None, target);
            assert_eq!(found, Some(expected), "{target}");
        }
    }

    #[test]
    fn case_is_folded_in_all_of_unicode() {
        let routes = routes(&[
            "match = '* /{*rest}'",
            "match = '* /admin/users'",
            "match = '* /ma%C3%9Fe'",
        ]);
        for target in [
            "/admin/u%C5%BFers",
            "/adm%C4%B1n/users",
            "/adm%C4%B0n/users",
            "/ma%E1%BA%9Ee",
            "/ADMIN/USERS",
        ] {
            let result = routes.find(&Method::GET, None, target);
            assert!(matches!(result, Err(NotFound::Ambiguous(_))), "{target}");
        }
    }

    #[test]
    fn duplicates_are_errors() {
        for (a, b) in [
            ("GET /a/{x}", "GET /a/{y}"),
            ("GET,POST /a", "POST /a"),
            ("* /a", "* /a"),
            ("GET /a", "GET /A"),
            ("GET /a", "* /a/"),
            ("GET /a/{x}", "GET /a/{*x}"),
            ("GET /caf%c3%a9", "GET /caf%C3%A9"),
        ] {
            let problems = config(&format!(
                "[[route]]\nmatch = '{a}'\n[[route]]\nmatch = '{b}'\n"
            ))
            .unwrap_err();
            assert_eq!(problems.len(), 1, "{a} {b} {problems:?}");
        }
        for (a, b) in [
            ("GET /a", "POST /a"),
            ("GET /a", "* /a"),
            ("GET /a/{x}", "* /a/b"),
            ("GET /a/{{x}}", "GET /a/{{y}}"),
        ] {
            assert!(
                config(&format!(
                    "[[route]]\nmatch = '{a}'\n[[route]]\nmatch = '{b}'\n"
                ))
                .is_ok(),
                "{a} {b}"
            );
        }
    }

    proptest! {
        /// Whatever a service decodes, folds or cuts once, it finds the route that was decided about.
        #[test]
        fn decided_route_is_the_route_of_every_reading(target in "(/(a|b|A|%61|%62|%41|x|%2e|\\.|adm%69n|admin|%C3%A9|%25|;|a;b|)){1,4}") {
            let mut routes = routes(&[
                "match = '* /{*rest}'",
                "match = '* /a/{id}'",
                "match = '* /a/b'",
                "match = '* /a/{id}/admin'",
                "match = '* /x/{*rest}'",
            ]);
            routes.allow_semicolons = true;
            if let Ok(decided) = routes.find(&Method::GET, None, &target) {
                type Reading = fn(&str) -> String;
                let decode: Reading = |path| percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
                let cut: Reading = |path| path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path).to_owned();
                let readings: [Reading; 4] = [decode, str::to_lowercase, path::without_parameters, cut];
                let paths = routes.of_other_hosts.paths(&Method::GET);
                for chosen in 0..1 << readings.len() {
                    let chosen = (0..readings.len()).filter(|at| chosen & (1 << at) != 0);
                    let reading = chosen.fold(target.clone(), |path, at| readings[at](&path));
                    // What is ambiguous itself was never allowed for its own route.
                    if let (Ok(read), Ok(_)) = (paths.as_sent.at(&reading), routes.find(&Method::GET, None, &reading)) {
                        prop_assert_eq!(*read.value, decided.index, "{} is read as {}", target, reading);
                    }
                }
            }
        }
    }
}
