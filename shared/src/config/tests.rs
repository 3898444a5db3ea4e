//! Whole files: what each problem says and where, what the defaults are, and that the samples in `etc/` tell the truth.

mod defaults;
mod files;
mod peers;
mod problems;
mod routes;

use std::path::Path;

use super::*;

/// Models, as the program would have them.
const MODELS: &[KnownModel] = &[
    KnownModel { name: "reactor", pollers: Poller::ALL },
    KnownModel { name: "thread", pollers: &[Poller::Epoll, Poller::Poll] },
];

/// A program without apps.
const KNOWN: Known<'_> = Known { models: MODELS, apps: &[] };

/// A listener and a site, which every file needs.
const REST: &str = "\n[[listen]]\naddress = \"127.0.0.1:8080\"\n[[site]]\n[[site.route]]\npath = \"/\"\nrespond = {}\n";

/// The problems of a text in `/etc/phalanx.toml`; it must have some.
fn problems_of(text: &str) -> Vec<Problem> {
    parse(text, Path::new("/etc/phalanx.toml"), KNOWN).expect_err(text).0
}

/// The configuration of a text in `/etc/phalanx.toml`; it must be sound.
fn config_of(text: &str) -> Config {
    parse(text, Path::new("/etc/phalanx.toml"), KNOWN).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}
