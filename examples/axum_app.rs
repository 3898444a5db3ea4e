//! An ordinary axum router, with state, JSON, server-sent events and a WebSocket. Nothing in it knows of Phalanx but `main`, which
//! would read `axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())` otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, Stream, StreamExt};
use phalanx::{Server, Tower};
use serde::{Deserialize, Serialize};

/// What the handlers of one worker share.
#[derive(Default)]
struct Visits(AtomicU64);

#[derive(Serialize, Deserialize)]
struct Greeting {
    name: String,
    visit: u64,
}

async fn greet(Path(name): Path<String>, State(visits): State<Arc<Visits>>) -> Json<Greeting> {
    let visit = visits.0.fetch_add(1, Ordering::Relaxed) + 1;
    Json(Greeting { name, visit })
}

async fn echo(Json(greeting): Json<Greeting>) -> Json<Greeting> {
    Json(greeting)
}

/// Waits as for a database.
async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(20)).await;
    "slow\n"
}

async fn who(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
    peer.ip().to_string()
}

/// Counts the bytes of a body as they come.
async fn count(body: Body) -> Result<String, StatusCode> {
    let mut bytes = 0;
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        bytes += piece.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(bytes.to_string())
}

/// So many bytes, in pieces.
async fn zeros(Path(mut left): Path<u64>) -> Response {
    let piece = Bytes::from(vec![0; 64 * 1024]);
    let pieces = stream::iter(std::iter::from_fn(move || {
        let next = piece.slice(..left.min(piece.len() as u64) as usize);
        left -= next.len() as u64;
        (!next.is_empty()).then_some(Ok::<_, Infallible>(next))
    }));
    Body::from_stream(pieces).into_response()
}

/// Ten times a second.
async fn ticks() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(0_u64, |tick| async move {
        if tick > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((Ok(Event::default().data(tick.to_string())), tick + 1))
    }))
}

async fn chat(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

fn main() -> ExitCode {
    let app = Router::new()
        .route("/", get(|| async { "Hello, World!\n" }))
        .route("/greet/{name}", get(greet))
        .route("/echo", post(echo))
        .route("/slow", get(slow))
        .route("/who", get(who))
        .route("/count", post(count))
        .route("/zeros/{count}", get(zeros))
        .route("/ticks", get(ticks))
        .route("/chat", get(chat))
        .with_state(Arc::new(Visits::default()));
    Server::new(Tower::new(app).connect_info()).main()
}
