//! `--http`: metrics, health and the dashboard, for reading only. The only code that names axum.
//!
//! A client that reaches the address sees everybody's batches and the output of failing jobs: it
//! should be loopback, or behind a proxy that authenticates. Requests that call it by another name
//! are refused, so that no other site's page can have a browser read it (DNS rebinding).

mod connections;

use crate::exit::Exit;
use crate::service::ServiceHandle;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use connections::{Connection, Connections};
use futures_util::stream;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// Time between two pictures for one viewer.
const EVERY: Duration = Duration::from_millis(500);
/// The service has to answer within this time to be called alive.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Site {
    service: ServiceHandle,
    address: SocketAddr,
}

/// Serves on `address` for as long as the process lives.
///
/// # Errors
/// Exit 3: the address is in use or not one of this host.
pub async fn serve(service: ServiceHandle, address: SocketAddr) -> Result<SocketAddr, Exit> {
    let failed = |e| Exit::unreachable(format!("cannot listen on http://{address}: {e}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let site = Site { service, address };
    let router = Router::new()
        .route("/", get(dashboard))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .layer(from_fn_with_state(site.clone(), by_its_own_name))
        .with_state(site);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(Connections::new(listener), router).await {
            tracing::error!(error = %e, "the HTTP server has ended");
        }
    });
    Ok(address)
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Connections::local_addr(self)
    }
}

/// Lets requests through that name the server as an intended client would.
async fn by_its_own_name(State(site): State<Site>, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let loopback = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let own = name.trim_matches(['[', ']']) == site.address.ip().to_string();
    // On a public address any name may lead to it.
    if !loopback && !own && site.address.ip().is_loopback() {
        return (StatusCode::FORBIDDEN, "this server is called localhost\n").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:";
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(policy),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

async fn dashboard() -> Html<&'static str> {
    Html(include_str!("http/dashboard.html"))
}

async fn metrics(State(site): State<Site>) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match tokio::time::timeout(PATIENCE, site.service.metrics()).await {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Ok(None) | Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the service does not answer\n",
        )
            .into_response(),
    }
}

async fn livez(State(site): State<Site>) -> Response {
    match tokio::time::timeout(PATIENCE, site.service.trouble()).await {
        Ok(Some(_)) => "ok\n".into_response(),
        Ok(None) | Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the service does not answer\n",
        )
            .into_response(),
    }
}

async fn readyz(State(site): State<Site>) -> Response {
    match tokio::time::timeout(PATIENCE, site.service.trouble()).await {
        Ok(Some(None)) => "ok\n".into_response(),
        Ok(Some(Some(why))) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
        Ok(None) | Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the service does not answer\n",
        )
            .into_response(),
    }
}

/// Pictures of the service, one after the other, until the viewer leaves or the service ends.
async fn events(State(site): State<Site>) -> impl IntoResponse {
    let pictures = stream::unfold(
        (site.service, 0, true),
        |(service, since, first)| async move {
            if !first {
                tokio::time::sleep(EVERY).await;
            }
            let view = service.view(since).await?;
            let seq = view.seq;
            let event = Event::default().data(serde_json::to_string(&view).ok()?);
            Some((Ok::<_, Infallible>(event), (service, seq, false)))
        },
    );
    Sse::new(pictures).keep_alive(KeepAlive::default())
}
