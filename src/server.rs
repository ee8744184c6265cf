//! Serving: sockets in, replies out.

use crate::config::Config;

/// Why serving ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
}

/// Serves until a signal asks for the end.
pub fn run(config: Config) -> Result<(), RunError> {
    match std::net::TcpListener::bind(config.listen.as_pair()).and_then(|listener| listener.local_addr()) {
        Ok(address) => {
            println!("{}", config.banner(address));
            Ok(())
        }
        Err(error) => Err(RunError::Listen { address: config.listen.to_string(), error }),
    }
}
