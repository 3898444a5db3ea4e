//! The configuration as written: every table and every key, each documented here and nowhere else. Readers may ask for
//! declared keys only, a key that is not declared is refused, and `etc/phalanx.toml` is held against this list by a test.

/// A key and what it is for. The hint of a problem with its value shows `about` to the operator.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
}

/// How a table stands in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The file itself.
    Root,
    /// `[name]`
    Single,
    /// `[[name]]`, any number of them
    Many,
    /// `name = { … }`
    Inline,
}

/// A table and its keys.
pub(super) struct Schema {
    /// The whole name, as in `site.route`; empty for the file itself.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) keys: &'static [Key],
    /// What is planned and has a name already.
    pub(super) planned: &'static [Planned],
}

/// A key that is known but not yet available.
pub(super) struct Planned {
    pub(super) key: &'static str,
    /// What it would be, as in "… is not yet available".
    pub(super) what: &'static str,
    /// What to do instead.
    pub(super) hint: &'static str,
}

/// Every table.
pub(super) static TABLES: &[&Schema] = &[
    &ROOT,
    &MASTER,
    &WORKERS,
    &CANARY,
    &RESCUE,
    &QUARANTINE,
    &LIMITS,
    &TIMEOUTS,
    &CACHE,
    &LISTEN,
    &SITE,
    &ROUTE,
    &FILES,
    &RESPOND,
    &REDIRECT,
    &LIMIT,
    &LOG,
];

pub(super) static ROOT: Schema = Schema {
    name: "",
    shape: Shape::Root,
    keys: &[
        key("master", "the supervising process"),
        key("workers", "the processes that serve"),
        key("canary", "how a reload tries a configuration on one slot first"),
        key("rescue", "what becomes of requests whose worker died"),
        key("quarantine", "what becomes of requests that kill workers"),
        key("limits", "what a peer may make a worker hold"),
        key("timeouts", "how long a peer may keep a worker waiting"),
        key("cache", "what a worker keeps at hand of the files it serves"),
        key("listen", "the addresses that are served"),
        key("site", "what is served, by host"),
        key("log", "what is written down"),
    ],
    planned: &[Planned { key: "admin", what: "the admin listener", hint: "remove the [admin] table" }],
};

pub(super) static MASTER: Schema = Schema {
    name: "master",
    shape: Shape::Single,
    keys: &[
        key("pid_file", "the file that holds the master's process id"),
        key("control_socket", "the Unix socket that `phalanx status`, `reload` and the like talk to"),
        key("user", "the user that workers run as; without it they stay who the master is"),
        key("group", "the group that workers run as; without it the user's own"),
        key("probation", "how long after an upgrade a worker that dies of itself brings the program before it back"),
        key("crash_dir", "the directory for crash reports; without it they are only logged"),
        key("crash_reports", "how many crash reports the directory keeps"),
    ],
    planned: &[],
};

pub(super) static WORKERS: Schema = Schema {
    name: "workers",
    shape: Shape::Single,
    keys: &[
        key("count", "the number of slots; \"auto\" is one for each processor it may use"),
        key("model", "how a worker turns events into answers"),
        key("poller", "how a worker waits for events"),
        key("threads", "threads that run handlers, or have a connection each"),
        key("loops", "event loops of a worker that has several"),
        key("queue", "requests that may wait for a thread"),
        key("boot_timeout", "how long a worker may take from its clone until it is ready"),
        key("hang_timeout", "how long a worker's loop may stay silent before the worker is killed and replaced"),
        key(
            "request_timeout",
            "how long a thread may work on one request until that is answered 504 and the worker replaced; 0s is any time",
        ),
        key(
            "unready_delay",
            "how long a graceful stop serves on while it tells load balancers to go elsewhere; 0s is not at all",
        ),
        key("drain_timeout", "how long a stop or a recycle waits for what is in flight"),
        key(
            "probation",
            "how long after a reload a worker that dies of itself brings the configuration before it back",
        ),
        key(
            "max_old_generations",
            "how many predecessors of a slot's worker may still end what they had; one more is ended",
        ),
        key("max_requests", "after how many requests a worker is recycled; 0 is never"),
        key("max_age", "how long a worker serves until it is recycled; 0s is for ever"),
        key("max_memory", "at how much private memory a worker is recycled; 0 is never"),
        key("hard_memory", "at how much private memory a worker is killed, whatever it does; 0 is never"),
        key(
            "give_up_after",
            "after how many deaths in a row, in every slot, of workers that did not come to serve the service ends; 0 is never",
        ),
        key("on_master_death", "what workers do when the master died: \"drain\", then exit, or \"exit\" at once"),
        key("io_threads", "how many threads a worker has for what may block: reads from a cold disk, compression"),
        key("allow_faults", "whether routes may break their worker on purpose, for tests"),
    ],
    planned: &[],
};

pub(super) static CANARY: Schema = Schema {
    name: "canary",
    shape: Shape::Single,
    keys: &[
        key("time", "how long one slot alone serves by a changed configuration before the others do; 0s is not at all"),
        key("errors", "by how many percentage points its share of 5xx answers may exceed that of the others"),
        key("latency", "how many times as long as the others it may work on a request; 0 is any time"),
    ],
    planned: &[],
};

pub(super) static RESCUE: Schema = Schema {
    name: "rescue",
    shape: Shape::Single,
    keys: &[
        key("enabled", "whether a successor takes over the connections of a worker that died"),
        key("max_attempts", "how often one request may be replayed after a death that was not its fault"),
    ],
    planned: &[],
};

pub(super) static QUARANTINE: Schema = Schema {
    name: "quarantine",
    shape: Shape::Single,
    keys: &[
        key("enabled", "whether requests that kill workers again and again are answered 503 for a while"),
        key("crashes", "how many workers a method and path have to kill for that"),
        key("window", "within how long"),
        key("time", "for how long they are answered 503"),
    ],
    planned: &[],
};

pub(super) static LIMITS: Schema = Schema {
    name: "limits",
    shape: Shape::Single,
    keys: &[
        key("head", "the size of a request's head; a larger one gets 431"),
        key("body", "the size of a request's body; a larger one gets 413"),
        key("connections", "how many connections one slot holds at once"),
        key("connections_per_client", "how many connections one client address may have at once; 0 is any number"),
        key("requests_per_connection", "after how many requests a connection is closed; 0 is never"),
    ],
    planned: &[],
};

pub(super) static TIMEOUTS: Schema = Schema {
    name: "timeouts",
    shape: Shape::Single,
    keys: &[
        key("head", "the time from the first byte of a request's head to its last"),
        key("body", "the time between two pieces of a request's body"),
        key("idle", "how long a connection may be kept alive without a request"),
        key("write", "how long a peer may refuse to read its answer"),
        key("body_rate", "how many bytes a second of a request's body must come at least; 0 is any number"),
        key("write_rate", "how many bytes a second of its answer a peer must read at least; 0 is any number"),
    ],
    planned: &[],
};

pub(super) static CACHE: Schema = Schema {
    name: "cache",
    shape: Shape::Single,
    keys: &[
        key("memory", "how much file content each worker keeps in memory; 0 is none"),
        key("file", "the largest file that is kept in memory"),
        key("open_files", "how many files each worker keeps open; 0 is none"),
    ],
    planned: &[],
};

pub(super) static LISTEN: Schema = Schema {
    name: "listen",
    shape: Shape::Many,
    keys: &[
        key("address", "an IP address with its port, or unix:/path"),
        key("proxy_protocol", "whether each connection begins with a PROXY protocol header, version 1 or 2"),
        key(
            "trusted",
            "the networks whose word on the client's address is taken; \"unix\" is the peers of a Unix socket",
        ),
    ],
    planned: &[],
};

pub(super) static SITE: Schema = Schema {
    name: "site",
    shape: Shape::Many,
    keys: &[
        key("hosts", "the host names of the site; without it the site answers for every host"),
        key("route", "what the site answers, by path"),
    ],
    planned: &[],
};

pub(super) static ROUTE: Schema = Schema {
    name: "site.route",
    shape: Shape::Many,
    keys: &[
        key("path", "the beginning of the paths it answers, the longest wins; \"= /x\" is exactly /x"),
        key("files", "serves the files below a directory"),
        key("respond", "gives a fixed answer"),
        key("redirect", "sends the client elsewhere"),
        key("app", "has the app of this name answer, in a program that has Phalanx as a library"),
        key("headers", "header fields that are added to every answer"),
        key("cache_control", "the Cache-Control of every answer"),
        key("limit", "how many requests a client address may make"),
        key("charset", "with files: the charset that text is sent with, or \"off\""),
        key("deny", "with files: patterns of paths that are answered as if nothing were there"),
        key("error_pages", "with files: the page sent with an error, by status, as a path below the root"),
        key(
            "health",
            "tells load balancers how the worker is: \"readiness\" is 503 before it stops, \"liveness\" never",
        ),
        key("fault", "breaks the worker on purpose; refused unless workers.allow_faults is true"),
    ],
    planned: &[Planned {
        key: "proxy",
        what: "proxy",
        hint: "remove the route, or give it files, respond or redirect",
    }],
};

pub(super) static FILES: Schema = Schema {
    name: "site.route.files",
    shape: Shape::Inline,
    keys: &[
        key("root", "the directory whose files are served; it must exist"),
        key("index", "the file names tried, in order, when a directory is asked for"),
        key("listing", "whether a directory without an index file is answered with its list of files"),
        key("fallback", "the path below the root that answers for what is not there"),
        key("compress", "whether what is worth it is compressed on the way"),
        key(
            "precompressed",
            "whether file.br, file.zst and file.gz are sent in place of file to clients that take them",
        ),
    ],
    planned: &[],
};

pub(super) static RESPOND: Schema = Schema {
    name: "site.route.respond",
    shape: Shape::Inline,
    keys: &[
        key("status", "the status of the answer"),
        key("body", "the text of the answer"),
        key("type", "the answer's Content-Type"),
        key("work", "time on a processor before the answer, to compare models by"),
        key("wait", "time asleep before the answer, to compare models by"),
    ],
    planned: &[],
};

pub(super) static REDIRECT: Schema = Schema {
    name: "site.route.redirect",
    shape: Shape::Inline,
    keys: &[
        key("to", "the answer's Location, a path or a whole URL"),
        key("status", "the status of the answer: 301, 302, 303, 307 or 308"),
    ],
    planned: &[],
};

pub(super) static LIMIT: Schema = Schema {
    name: "site.route.limit",
    shape: Shape::Inline,
    keys: &[
        key("rate", "a number of requests and the time they have: \"5/s\", \"30/m\", \"100/h\", \"1000/d\""),
        key("burst", "how many requests may come at once"),
    ],
    planned: &[],
};

pub(super) static LOG: Schema = Schema {
    name: "log",
    shape: Shape::Single,
    keys: &[
        key("access", "where a line for each request goes: \"stdout\", \"stderr\", \"off\" or a file"),
        key("format", "how these lines look: \"combined\" or \"json\""),
        key("error", "where the log of the processes themselves goes, as access"),
        key("level", "the least that goes there: \"error\", \"warn\", \"info\" or \"debug\""),
    ],
    planned: &[],
};

const fn key(name: &'static str, about: &'static str) -> Key {
    Key { name, about }
}

impl Schema {
    pub(super) fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    pub(super) fn planned(&self, name: &str) -> Option<&Planned> {
        self.planned.iter().find(|planned| planned.key == name)
    }

    /// The whole name of one of the table's keys, as in `workers.count`.
    pub(super) fn name_of(&self, key: &str) -> String {
        match self.shape {
            Shape::Root => key.to_owned(),
            _ => format!("{}.{key}", self.name),
        }
    }

    /// How the table begins in a file, as in `[[site.route]]`.
    pub(super) fn heading(&self) -> String {
        let last = self.name.rsplit('.').next().unwrap_or(self.name);
        match self.shape {
            Shape::Root => "the top of the file".to_owned(),
            Shape::Single => format!("[{}]", self.name),
            Shape::Many => format!("[[{}]]", self.name),
            Shape::Inline => format!("{last} = {{ … }}"),
        }
    }
}
