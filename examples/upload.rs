//! Uploads of any size, streamed to disk. `curl -T FILE http://127.0.0.1:8080/NAME` sends one, and `/progress/NAME` tells meanwhile how
//! far it has come, whichever worker is asked.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use phalanx::state::Table;
use phalanx::{Request, Routes, Server, pooled};

/// How long a progress is told after the last byte.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Uploads {
    directory: PathBuf,
    progress: Table,
}

impl Uploads {
    /// Writes the body to a file as it comes, under another name until it is whole.
    fn receive(&self, request: &Request) -> io::Result<(u16, String)> {
        let name = request.param("name").unwrap_or_default();
        let (path, part) = (self.directory.join(name), self.directory.join(format!(".{name}.part")));
        let (mut file, mut reader, mut bytes, mut count) =
            (File::create(&part)?, request.body().reader(), vec![0; 65_536], 0);
        loop {
            match reader.read(&mut bytes)? {
                0 => break,
                more => {
                    file.write_all(&bytes[..more])?;
                    count += more as u64;
                    // A name that is too long for the table has no progress.
                    let _best_effort = self.progress.set(name.as_bytes(), &count.to_le_bytes(), Some(KEPT));
                }
            }
        }
        file.sync_all()?;
        std::fs::rename(part, path)?;
        Ok((201, format!("{count} bytes\n")))
    }

    fn tell(&self, request: &Request) -> (u16, String) {
        let count = request.param("name").and_then(|name| self.progress.get(name.as_bytes()));
        match count.and_then(|count| Some(u64::from_le_bytes(count.try_into().ok()?))) {
            Some(count) => (200, format!("{count} bytes so far\n")),
            None => (404, "no such upload\n".to_owned()),
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let directory = std::env::var_os("UPLOADS").map_or_else(std::env::temp_dir, PathBuf::from);
    let uploads = Uploads { directory, progress: Table::new("progress", 1000, 255, 8)? };
    let teller = uploads.clone();
    let routes = Routes::new()
        .put("/{name}", pooled(move |request: &Request| uploads.receive(request)).streamed())
        .get("/progress/{name}", move |request: &Request| teller.tell(request));
    Ok(Server::builder().app(routes).settings("[limits]\nbody = \"10GiB\"").build().main())
}
