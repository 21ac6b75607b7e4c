import { unlike } from "./failure.ts";

/** What matters on a socket's way to a connection. */
export interface Way {
  /** Signs the nonce of the server's INFO, before the client sees it. */
  readonly prepare: ((nonce: string) => Promise<void>) | undefined;
  /** The server has taken the log-in, or said why not. */
  readonly said: (refusal: string | undefined) => void;
  /** It can no longer become a connection. */
  readonly broke: (why: unknown) => void;
  /** Is aborted to let go of the socket, whatever its peer does. */
  readonly gone: AbortController;
}

/**
 * A socket as the client sees it, which asks for a signature but does not wait for one, would wait a round trip before it
 * may be used, and for a close without end. So
 * - the server's INFO comes when its nonce is signed;
 * - the first PING is answered here. The server's own PONG finds nobody waiting for it, and tells how the log-in went;
 * - a close is reported, and the socket let go, after 250 ms at the latest.
 */
export function wire(socket: WebSocket, { prepare, said, broke, gone }: Way): WebSocket {
  let greeting: string | undefined = ""; // as much of INFO as has come; undefined once that is all
  let held: MessageEvent[] | undefined;
  let take = listen;
  const client = {
    binaryType: "arraybuffer",
    onopen: null,
    onmessage: null as ((event: MessageEvent) => void) | null,
    onerror: null as ((event: Event) => void) | null,
    onclose: null as ((event: CloseEvent) => void) | null,
    get bufferedAmount() {
      return socket.bufferedAmount;
    },
    send(data: ArrayBuffer) {
      socket.send(data);
      if (data.byteLength !== 6 || new TextDecoder().decode(data) !== "PING\r\n") return;
      client.send = (data) => socket.send(data);
      client.onmessage?.({ data: new TextEncoder().encode("PONG\r\n").buffer } as MessageEvent);
    },
    close(...reason: [number?, string?]) {
      const timer = setTimeout(() => {
        client.onclose?.({ wasClean: false, code: 1006, reason: "no answer to close" } as CloseEvent);
        gone.abort();
      }, 250);
      socket.addEventListener("close", () => clearTimeout(timer));
      socket.close(...reason);
    },
  };
  socket.binaryType = "arraybuffer";
  socket.addEventListener("error", (event) => {
    broke(new Error(("message" in event && event.message) || "the socket broke"));
    client.onerror?.(event);
  });
  socket.addEventListener("close", (event) => {
    if (greeting !== undefined)
      broke(unlike(`took the WebSocket and closed it (${event.code}) without having sent NATS's INFO`));
    client.onclose?.(event);
  });
  socket.addEventListener("message", (event) => take(event));
  return client as unknown as WebSocket; // as much of one as the client uses

  function listen(event: MessageEvent): void {
    const text = typeof event.data === "string" ? event.data : new TextDecoder().decode(event.data);
    if (greeting !== undefined) {
      greeting += text;
      if (!greeting.startsWith("INFO ".slice(0, greeting.length))) {
        broke(unlike("took the WebSocket, and what it says over it is not NATS's INFO"));
        return;
      }
      const [, info] = /^INFO (.*)\r\n/.exec(greeting) ?? [];
      if (info !== undefined) {
        greeting = undefined;
        const nonce = prepare && nonceIn(info);
        if (nonce) {
          held = [];
          prepare(nonce).then(release, broke);
        }
      }
    }
    const first = /^(?:PONG\r\n|-ERR '(.*)')/m.exec(text); // what comes after the PONG is about something else
    if (first) {
      take = pass;
      said(first[1]);
    }
    pass(event);
  }

  function pass(event: MessageEvent): void {
    if (held) held.push(event);
    else client.onmessage?.(event);
  }

  function release(): void {
    const all = held ?? [];
    held = undefined;
    for (const event of all) client.onmessage?.(event);
  }
}

function nonceIn(info: string): string | undefined {
  try {
    return (JSON.parse(info) as { nonce?: string }).nonce;
  } catch {
    return undefined; // the client says so
  }
}
