//! Configurations: any text gets a configuration or problems that have a place in it, and a sound one comes out of its
//! blueprint as it went in.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use phalanx_shared::config::{self, Config, Known};

/// A program without apps.
const KNOWN: Known<'_> = Known { models: phalanx_worker::MODELS, apps: &[] };

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::parse(text, Path::new("/etc/phalanx.toml"), KNOWN) {
        Ok(config) => {
            let blueprint = config.to_blueprint().expect("a configuration can be written");
            let again = Config::from_blueprint(&blueprint).expect("what was written can be read");
            assert_eq!(again, config);
            assert!(!config.listen.is_empty());
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            let lines = text.split('\n').count();
            for problem in &problems.0 {
                assert!(problem.place.is_none_or(|place| (1..=lines).contains(&place.line) && place.column > 0));
                assert!(!problem.text.is_empty());
            }
            assert!(problems.0.is_sorted_by_key(|problem| problem.place.map(|place| place.line)));
        }
    }
});
