//! The configuration on its way from the master to a worker: JSON in a sealed memfd.

use super::Config;

impl Config {
    /// Serialises the configuration.
    pub fn to_blueprint(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads what [`Config::to_blueprint`] wrote.
    pub fn from_blueprint(bytes: &[u8]) -> Result<Config, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
