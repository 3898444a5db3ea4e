//! Handlers by method and path.

use matchit::Params;
use rustc_hash::FxHashMap;

use super::Endpoint;

/// Handlers by method and path.
///
/// A path may hold parameters: `/users/{id}` matches one segment, `/files/{*rest}` all that follow. A literal segment goes before a
/// parameter. Paths are compared as [`Request::path`](super::Request::path) tells them, decoded and normalised. `HEAD` is answered by the handler of
/// `GET`, without the body. A path that has handlers of other methods only is answered 405, one that has none 404, and `OPTIONS`
/// tells the methods, unless there is a handler for that.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    paths: matchit::Router<usize>,
    /// Those without parameters, which go before all others. Nobody but the program chooses what stands in it.
    literal: FxHashMap<String, usize>,
    by_path: Vec<Methods>,
    patterns: Vec<String>,
    fallback: Option<Endpoint>,
    conflicts: Vec<Conflict>,
}

/// Handlers of one path.
#[derive(Debug, Clone, Default)]
struct Methods {
    by_name: Vec<(String, Endpoint)>,
    any: Option<Endpoint>,
}

/// A route that cannot be: another has its place, or its path is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The path, as written.
    pub path: String,
    /// Why not.
    pub why: String,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the route {:?}: {}", self.path, self.why)
    }
}

impl std::error::Error for Conflict {}

/// What a request comes to.
pub(crate) enum Found<'r> {
    /// This, with the parameters of its path.
    Endpoint(&'r Endpoint, Option<Params<'r, 'r>>),
    /// Nothing but these methods.
    Others(String),
    Nothing,
}

impl Routes {
    /// None yet.
    #[must_use]
    pub fn new() -> Routes {
        Routes::default()
    }

    /// Has `endpoint` answer requests of `method` for `path`. What cannot be is told when the server starts, see
    /// [`Routes::conflicts`].
    #[must_use]
    pub fn route(mut self, method: &str, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        let endpoint = endpoint.into();
        self.at(path, |methods| {
            if methods.by_name.iter().any(|(known, _)| known == method) {
                return Err(format!("{method} has a handler already"));
            }
            methods.by_name.push((method.to_owned(), endpoint));
            Ok(())
        });
        self
    }

    /// Has `endpoint` answer requests of every method that has no handler of its own for `path`.
    #[must_use]
    pub fn any(mut self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        let endpoint = endpoint.into();
        self.at(path, |methods| match methods.any.replace(endpoint) {
            None => Ok(()),
            Some(_) => Err("any method has a handler already".to_owned()),
        });
        self
    }

    /// As [`Routes::route`], for `GET`, and `HEAD` with it.
    #[must_use]
    pub fn get(self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        self.route("GET", path, endpoint)
    }

    /// As [`Routes::route`], for `POST`.
    #[must_use]
    pub fn post(self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        self.route("POST", path, endpoint)
    }

    /// As [`Routes::route`], for `PUT`.
    #[must_use]
    pub fn put(self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        self.route("PUT", path, endpoint)
    }

    /// As [`Routes::route`], for `PATCH`.
    #[must_use]
    pub fn patch(self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        self.route("PATCH", path, endpoint)
    }

    /// As [`Routes::route`], for `DELETE`.
    #[must_use]
    pub fn delete(self, path: &str, endpoint: impl Into<Endpoint>) -> Routes {
        self.route("DELETE", path, endpoint)
    }

    /// Has `endpoint` answer what no route is about.
    #[must_use]
    pub fn fallback(mut self, endpoint: impl Into<Endpoint>) -> Routes {
        self.fallback = Some(endpoint.into());
        self
    }

    /// What of it cannot be.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Whether some handler is such.
    pub(super) fn any_is(&self, is: impl Fn(&Endpoint) -> bool) -> bool {
        let of_paths =
            self.by_path.iter().flat_map(|methods| methods.by_name.iter().map(|(_, it)| it).chain(&methods.any));
        of_paths.chain(&self.fallback).any(is)
    }

    fn at(&mut self, path: &str, add: impl FnOnce(&mut Methods) -> Result<(), String>) {
        let added = self.index(path).and_then(|index| add(&mut self.by_path[index]));
        if let Err(why) = added {
            self.conflicts.push(Conflict { path: path.to_owned(), why });
        }
    }

    fn index(&mut self, path: &str) -> Result<usize, String> {
        if let Some(index) = self.patterns.iter().position(|known| known == path) {
            return Ok(index);
        }
        if !path.starts_with('/') {
            return Err(format!("a path begins with a slash: write \"/{path}\""));
        }
        let index = self.by_path.len();
        self.paths.insert(path, index).map_err(|error| error.to_string())?;
        if !path.contains(['{', '}']) {
            self.literal.insert(path.to_owned(), index);
        }
        self.patterns.push(path.to_owned());
        self.by_path.push(Methods::default());
        Ok(index)
    }

    pub(crate) fn find<'r>(&'r self, method: &str, path: &'r str) -> Found<'r> {
        let fallback = || self.fallback.as_ref().map_or(Found::Nothing, |endpoint| Found::Endpoint(endpoint, None));
        if self.by_path.is_empty() {
            return fallback();
        }
        let (index, params) = match self.literal.get(path) {
            Some(index) => (*index, None),
            None => match self.paths.at(path) {
                Ok(found) => (*found.value, Some(found.params)),
                Err(_) => return fallback(),
            },
        };
        let methods = &self.by_path[index];
        match methods.find(method) {
            Some(endpoint) => Found::Endpoint(endpoint, params),
            None => Found::Others(methods.names()),
        }
    }
}

impl Methods {
    fn find(&self, method: &str) -> Option<&Endpoint> {
        let named = |name: &str| self.by_name.iter().find_map(|(known, endpoint)| (known == name).then_some(endpoint));
        let as_get = || if method == "HEAD" { named("GET") } else { None };
        named(method).or_else(as_get).or(self.any.as_ref())
    }

    /// As `Allow` tells them.
    fn names(&self) -> String {
        let mut names: Vec<&str> = self.by_name.iter().map(|(name, _)| name.as_str()).collect();
        if names.contains(&"GET") && !names.contains(&"HEAD") {
            names.push("HEAD");
        }
        names.push("OPTIONS");
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Request, Response, pooled};
    use super::*;

    fn nothing(_: &Request<'_>) -> Response {
        Response::new(204)
    }

    fn found(routes: &Routes, method: &str, path: &str) -> String {
        match routes.find(method, path) {
            Found::Endpoint(endpoint, params) => {
                let params = params.iter().flat_map(|params| params.iter());
                params.fold(format!("{:?}", endpoint.place), |text, (name, value)| format!("{text} {name}={value}"))
            }
            Found::Others(methods) => methods,
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_request_goes_to_the_handler_of_its_path_and_method() {
        let routes = Routes::new()
            .get("/", nothing)
            .get("/users/{id}", nothing)
            .post("/users/{id}", pooled(nothing))
            .get("/users/me", pooled(nothing))
            .any("/files/{*rest}", nothing);
        assert_eq!(routes.conflicts(), []);
        for (method, path, expected) in [
            ("GET", "/", "Inline"),
            ("HEAD", "/users/7", "Inline id=7"),
            ("POST", "/users/7", "Pooled id=7"),
            ("GET", "/users/me", "Pooled"),
            ("PUT", "/users/7", "GET, POST, HEAD, OPTIONS"),
            ("PURGE", "/files/a/b", "Inline rest=a/b"),
            ("GET", "/nowhere", "nothing"),
        ] {
            assert_eq!(found(&routes, method, path), expected, "{method} {path}");
        }
        let routes = routes.fallback(pooled(nothing));
        assert_eq!(found(&routes, "GET", "/nowhere"), "Pooled");
    }

    #[test]
    fn what_cannot_be_is_told() {
        let routes = Routes::new()
            .get("/a", nothing)
            .get("/a", nothing)
            .get("b", nothing)
            .get("/{x}", nothing)
            .get("/{y}", nothing)
            .any("/c", nothing)
            .any("/c", nothing);
        let told: Vec<String> = routes.conflicts().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0], "the route \"/a\": GET has a handler already");
        assert_eq!(told[1], "the route \"b\": a path begins with a slash: write \"/b\"");
        assert!(told[2].starts_with("the route \"/{y}\": "), "{told:?}");
    }
}
