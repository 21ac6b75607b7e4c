import { notUpgraded } from "../nats/failure.ts";

/**
 * A NATS server writes all that waits for a connection as one WebSocket message, and workerd closes one with more than 32 MiB.
 * To a browser it writes them in pieces of 4 KiB, and takes for one who says so.
 */
const userAgent = "Mozilla/5.0 (compatible; Sortie)";

/**
 * A WebSocket by way of `fetch`, which alone can be aborted: workerd keeps an invocation alive for as long as a peer does
 * not answer the close of a `new WebSocket()`.
 */
export async function openUpgraded(url: string, signal: AbortSignal): Promise<WebSocket> {
  const headers = { Upgrade: "websocket", "User-Agent": userAgent };
  const response = await fetch(url.replace(/^ws/, "http"), { headers, signal });
  const { webSocket } = response as Response & { webSocket?: (WebSocket & { accept(): void }) | null };
  if (!webSocket) throw notUpgraded(response.status);
  webSocket.accept();
  return webSocket;
}
