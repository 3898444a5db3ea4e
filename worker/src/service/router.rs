//! The router: which site and which route a request means.
//!
//! It owns the choice by host and by path, and the answers that belong to no route. What a route does is its service's.

use std::any::Any;
use std::sync::LazyLock;

use phalanx_shared::config::{self, Config, Rate, Route, RoutePath};
use phalanx_shared::quarantine::Quarantine;
use rustc_hash::FxHashMap;

use super::{Answer, Asked, Intake, NotReady, Service, Setting};
use crate::app;
use crate::http::reply::{Prepared, Reply, Text, fingerprint};
use crate::http::{Head, path};

/// No longer name resolves (RFC 1035, 2.3.4), so none is looked up.
const MAX_HOST: usize = 255;

/// Every site and route of a configuration, in the order in which they are tried.
#[derive(Debug)]
pub struct Router {
    sites: Vec<Site>,
    hosts: Hosts,
    limits: bool,
    /// Requests that are not run.
    quarantine: Option<Quarantine>,
    /// What they get.
    held: Prepared,
}

/// How many requests a client may make of a route.
#[derive(Debug)]
pub struct Limit {
    /// Tells the route from all others, over reloads too.
    pub id: u64,
    /// How many.
    pub rate: Rate,
    /// What one too many gets.
    refusal: Prepared,
}

impl Router {
    /// Makes every route ready. Fails if one cannot be: see [`NotReady`].
    pub fn new(config: &Config, setting: &Setting) -> Result<Router, NotReady> {
        let mut numbers = 0..;
        let mut site = |site: &config::Site| Site::new(site, &mut numbers, setting);
        let sites = config.sites.iter().map(&mut site).collect::<Result<_, _>>()?;
        let limits = config.sites.iter().flat_map(|site| &site.routes).any(|route| route.limit.is_some());
        let seconds = config.quarantine.time.as_secs().max(1);
        let held = Prepared::new(&Text {
            status: 503,
            content_type: "text/plain",
            headers: &format!("Retry-After: {seconds}\r\n"),
            body: "503 Service Unavailable\n",
        });
        Ok(Router { sites, hosts: Hosts::new(config), limits, quarantine: setting.quarantine, held })
    }

    /// Whether any route has a limit.
    #[inline]
    pub fn has_limits(&self) -> bool {
        self.limits
    }

    /// The limit of the route that a request means.
    pub fn limit_of(&self, head: &Head<'_>) -> Option<&Limit> {
        let path = path::decode(head.path).ok()?;
        self.find(head.host, &path)?.limit.as_ref()
    }

    /// Has the routes go on with descriptors of their own, in a process that is a copy of another. Each is told to `note`.
    pub(crate) fn take_own_descriptors(&self, note: impl Fn(std::os::fd::RawFd)) -> std::io::Result<()> {
        self.sites.iter().flat_map(|site| &site.0).try_for_each(|route| {
            route.service.take_own_descriptor()?;
            route.service.descriptor().into_iter().for_each(&note);
            Ok(())
        })
    }

    /// The descriptors that the routes hold open.
    pub(crate) fn descriptors(&self) -> Vec<std::os::fd::RawFd> {
        let routes = self.sites.iter().flat_map(|site| &site.0);
        routes.filter_map(|route| route.service.descriptor()).collect()
    }

    /// Whether the body of a request is of use to who answers it; if not, a peer that waits to be asked for it need not send it.
    pub fn wants_body(&self, head: &Head<'_>) -> bool {
        let Ok(path) = path::decode(head.path) else { return false };
        self.find(head.host, &path).is_some_and(|route| route.service.wants_body(head, &path))
    }

    /// What becomes of a body that is larger than its buffer.
    pub(crate) fn intake(&self, head: &Head<'_>) -> Intake {
        let Ok(path) = path::decode(head.path) else { return Intake::Discard };
        self.find(head.host, &path).map_or(Intake::Discard, |route| route.service.intake(head, &path))
    }

    /// What handlers need of the worker.
    pub(crate) fn needs(&self) -> app::Needs {
        let routes = self.sites.iter().flat_map(|site| &site.0);
        routes.map(|route| route.service.needs()).fold(app::Needs::default(), app::Needs::and)
    }

    /// As [`Router::answer`], for a process that is to be thrown away and has nothing of its worker; none: nobody is to be asked so.
    pub(crate) fn answer_isolated(&self, asked: &Asked<'_>) -> Option<app::Response> {
        let path = path::decode(asked.head.path).ok()?;
        match &self.find(asked.head.host, &path)?.service {
            Service::App(app) => app.handle(asked, &path),
            _ => None,
        }
    }

    /// Answers a request. `done` is what an answer to it earlier asked for.
    #[inline]
    pub fn answer<'r>(&'r self, asked: &Asked<'_>, done: Option<Box<dyn Any + Send>>) -> Answer<'r> {
        let head = asked.head;
        match (head.path, head.method) {
            ("*", _) => return Answer::Reply(Reply::Prepared(&OPTIONS_OF_THE_SERVER)),
            // It would echo what the peer's proxies added; nobody needs it here (RFC 9110, 9.3.8).
            (_, "TRACE") => return Answer::Reply(Reply::error(405)),
            _ => {}
        }
        if self.quarantine.is_some_and(|quarantine| quarantine.holds(head.method, head.path)) {
            return Answer::Reply(Reply::Prepared(&self.held));
        }
        let path = match path::decode(head.path) {
            Ok(path) => path,
            Err(refusal) => return Answer::Reply(refusal.into()),
        };
        match self.find(head.host, &path) {
            Some(route) => route.service.answer(asked, &path, done),
            None => Answer::Reply(Reply::error(404)),
        }
    }

    #[inline]
    fn find(&self, host: Option<&str>, path: &str) -> Option<&Ready> {
        self.sites.get(self.hosts.site_of(host))?.find(path)
    }
}

/// The answer to `OPTIONS *`, a ping of the server as a whole (RFC 9110, 9.3.7).
static OPTIONS_OF_THE_SERVER: LazyLock<Prepared> = LazyLock::new(|| {
    let headers = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n";
    Prepared::new(&Text { status: 200, content_type: "", headers, body: "" })
});

/// The routes of one site: the exact ones, then the prefixes, the longest first.
#[derive(Debug)]
struct Site(Vec<Ready>);

/// A route, ready to answer.
#[derive(Debug)]
struct Ready {
    path: RoutePath,
    service: Service,
    limit: Option<Limit>,
}

impl Limit {
    fn new(hosts: &[String], route: &Route, rate: Rate, service: &Service) -> Limit {
        // The same however much is too much, so that a successor makes the same bytes.
        let seconds = rate.interval.as_secs_f64().ceil().max(1.0);
        let refusal = service.dress().refusal(429, &format!("Retry-After: {seconds}\r\n"));
        Limit { id: fingerprint(&(hosts, &route.path)), rate, refusal }
    }

    /// What a request too many gets.
    pub fn refusal(&self) -> Reply<'_> {
        Reply::Prepared(&self.refusal)
    }
}

impl Site {
    fn new(
        site: &config::Site,
        numbers: &mut impl Iterator<Item = usize>,
        setting: &Setting,
    ) -> Result<Site, NotReady> {
        let ready = |(route, number): (&Route, usize)| {
            let service = Service::new(number, route, setting)?;
            let limit = route.limit.map(|rate| Limit::new(&site.hosts, route, rate, &service));
            Ok(Ready { path: route.path.clone(), service, limit })
        };
        let mut routes = site.routes.iter().zip(numbers).map(ready).collect::<Result<Vec<_>, NotReady>>()?;
        routes.sort_by_key(|ready| match &ready.path {
            RoutePath::Exact(_) => (0, 0),
            RoutePath::Prefix(prefix) => (1, usize::MAX - prefix.len()),
        });
        Ok(Site(routes))
    }

    #[inline]
    fn find(&self, path: &str) -> Option<&Ready> {
        self.0.iter().find(|route| match &route.path {
            RoutePath::Exact(exact) => path == exact,
            RoutePath::Prefix(prefix) => path.starts_with(prefix.as_str()),
        })
    }
}

/// Which site a host means, as an index. Nobody but the operator chooses the hosts that it knows.
#[derive(Debug)]
struct Hosts {
    exact: FxHashMap<String, usize>,
    /// `.example.org` for `*.example.org`; the longest first.
    suffixes: Vec<(String, usize)>,
    /// The first site without hosts or, if there is none, the first.
    default: usize,
}

impl Hosts {
    /// Where two sites name the same host, the first has it.
    fn new(config: &Config) -> Hosts {
        let default = config.sites.iter().position(|site| site.hosts.is_empty()).unwrap_or(0);
        let mut hosts = Hosts { exact: FxHashMap::default(), suffixes: Vec::new(), default };
        for (index, site) in config.sites.iter().enumerate() {
            for host in &site.hosts {
                match host.strip_prefix('*') {
                    Some(suffix) => hosts.suffixes.push((suffix.to_owned(), index)),
                    None => _ = hosts.exact.entry(host.clone()).or_insert(index),
                }
            }
        }
        hosts.suffixes.sort_by_key(|(suffix, _)| usize::MAX - suffix.len());
        hosts
    }

    #[inline]
    fn site_of(&self, host: Option<&str>) -> usize {
        match host {
            Some(host) if !(self.exact.is_empty() && self.suffixes.is_empty()) => {
                self.look_up(host).unwrap_or(self.default)
            }
            _ => self.default,
        }
    }

    /// Names are compared in lower case (RFC 9110, 4.2.3) and without the dot of the root domain.
    fn look_up(&self, host: &str) -> Option<usize> {
        let mut lower = [0; MAX_HOST];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        let host = std::str::from_utf8(lower).ok()?;
        let host = host.strip_suffix('.').unwrap_or(host);
        let by_suffix =
            || self.suffixes.iter().find(|(suffix, _)| host.len() > suffix.len() && host.ends_with(suffix.as_str()));
        self.exact.get(host).copied().or_else(|| by_suffix().map(|&(_, index)| index))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use phalanx_shared::config::{self, Action, Effort, Fault, FaultKind};

    use super::super::testing::{self, setting, with_head};
    use super::*;

    /// Paths, as written in the file, and what a route says there.
    type Routes<'a> = &'a [(&'a str, &'a str)];

    fn config(sites: &[(&[&str], Routes<'_>)]) -> Config {
        let mut config = config::serve_defaults(PathBuf::from("/"), vec![]);
        config.sites = sites.iter().map(|&(hosts, routes)| site(hosts, routes)).collect();
        config
    }

    fn site(hosts: &[&str], routes: Routes<'_>) -> config::Site {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        let routes = routes.iter().map(|&(path, body)| Route::new(route_path(path), says(body))).collect();
        config::Site { hosts, routes }
    }

    fn route_path(path: &str) -> RoutePath {
        match path.strip_prefix("= ") {
            Some(exact) => RoutePath::Exact(exact.to_owned()),
            None => RoutePath::Prefix(path.to_owned()),
        }
    }

    fn says(body: &str) -> Action {
        Action::Respond {
            status: 200,
            body: body.to_owned(),
            content_type: "text/plain".to_owned(),
            effort: Effort::default(),
        }
    }

    /// The body of the answer, as text.
    fn asked(router: &Router, line: &str, fields: &str) -> String {
        with_head(line, fields, |head| match router.answer(&testing::asked(head), None) {
            Answer::Reply(Reply::Prepared(prepared)) => String::from_utf8_lossy(prepared.body()).into_owned(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn exact_paths_win_and_then_the_longest_prefix() {
        let routes = &[("/", "root"), ("/a", "a"), ("/a/b/", "ab"), ("= /a/b/", "exact"), ("= /c", "c")];
        let router = Router::new(&config(&[(&[], routes)]), &setting()).unwrap();
        for (path, body) in [
            ("/", "root"),
            ("/x", "root"),
            ("/a", "a"),
            ("/ab", "a"),
            ("/a/b", "a"),
            ("/a/b/", "exact"),
            ("/a/b/c", "ab"),
            ("/a/./b/%63", "ab"),
            ("/a/b/../../", "root"),
            ("/c", "c"),
            ("/c/", "root"),
            ("/%63", "c"),
            ("/c?d", "c"),
        ] {
            assert_eq!(asked(&router, &format!("GET {path}"), ""), body, "{path}");
        }
    }

    #[test]
    fn exact_hosts_win_and_then_the_longest_wildcard() {
        let router = Router::new(
            &config(&[
                (&["*.example.org"], &[("/", "wild")]),
                (&["*.deep.example.org"], &[("/", "deep")]),
                (&["example.org", "www.example.org"], &[("/", "exact")]),
                (&["example.org"], &[("/", "late")]),
                (&[], &[("/", "any")]),
            ]),
            &setting(),
        )
        .unwrap();
        for (host, body) in [
            ("example.org", "exact"),
            ("EXAMPLE.org:8080", "exact"),
            ("www.example.org.", "exact"),
            ("a.example.org", "wild"),
            ("a.b.example.org", "wild"),
            ("a.deep.example.org", "deep"),
            ("deep.example.org", "wild"),
            ("badexample.org", "any"),
            ("127.0.0.1", "any"),
            ("[::1]", "any"),
        ] {
            assert_eq!(asked(&router, "GET /", &format!("Host: {host}\r\n")), body, "{host}");
        }
        let long = "a".repeat(MAX_HOST - ".example.org".len());
        assert_eq!(asked(&router, "GET /", &format!("Host: {long}.example.org\r\n")), "wild");
        assert_eq!(asked(&router, "GET /", &format!("Host: {long}a.example.org\r\n")), "any");
        assert_eq!(asked(&router, "GET http://a.deep.example.org/", ""), "deep");
    }

    #[test]
    fn without_a_site_for_every_host_the_first_is_the_default() {
        let router = Router::new(&config(&[(&["a"], &[("/", "a")]), (&["b"], &[("/", "b")])]), &setting()).unwrap();
        assert_eq!(asked(&router, "GET /", "Host: b\r\n"), "b");
        assert_eq!(asked(&router, "GET /", "Host: c\r\n"), "a");
    }

    #[test]
    fn what_has_no_route_gets_its_page() {
        let router = Router::new(&config(&[(&[], &[("/a", "a")])]), &setting()).unwrap();
        assert_eq!(asked(&router, "GET /b", ""), "404 Not Found\n");
        assert_eq!(asked(&router, "GET /a/../..", ""), "400 Bad Request\n");
        assert_eq!(asked(&router, "GET /a%2Fb", ""), "400 Bad Request\n");
        assert_eq!(asked(&router, "TRACE /a", ""), "405 Method Not Allowed\n");
        assert_eq!(asked(&router, "BREW /a", ""), "a");
        assert_eq!(asked(&router, "OPTIONS *", ""), "");
        assert_eq!(asked(&Router::new(&config(&[]), &setting()).unwrap(), "GET /", ""), "404 Not Found\n");
    }

    #[test]
    fn a_fault_is_handed_to_the_caller() {
        let mut config = config(&[(&[], &[("/", "a")])]);
        config.sites[0].routes[0].action = Action::Fault(Fault { kind: FaultKind::Hang, pooled: false });
        let router = Router::new(&config, &setting()).unwrap();
        with_head("GET /", "", |head| {
            assert!(matches!(
                router.answer(&testing::asked(head), None),
                Answer::Fault(Fault { kind: FaultKind::Hang, .. })
            ))
        });
    }

    #[test]
    fn a_root_that_cannot_be_opened_is_named() {
        let mut config = config(&[(&[], &[("/", "a")])]);
        config.sites[0].routes[0].action = Action::Files(config::FilesAction::new("/does/not/exist".into()));
        assert_eq!(Router::new(&config, &setting()).unwrap_err().to_string(), "open the root /does/not/exist");
    }
}
