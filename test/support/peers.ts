import { createHash } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Something that listens where a nats-server should. */
export interface Peer extends AsyncDisposable {
  readonly url: string;
  readonly sockets: ReadonlySet<Socket>;
}

export async function startPeer(onConnection: (socket: Socket) => void): Promise<Peer> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    onConnection(socket);
    socket.resume(); // or the end would go unseen
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}`,
    sockets,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

/** Takes the connection and never says a word. */
export const silent = (): void => {};

/** Upgrades to a WebSocket and never sends INFO, as a proxy does in front of a server that is gone. */
export function upgradesOnly(socket: Socket): void {
  socket.once("data", (request) => {
    const key = /Sec-WebSocket-Key: (.+)\r\n/i.exec(request.toString())?.[1] ?? "";
    const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
  });
}

/** Answers HTTP like any web server. */
export function answersHttp(socket: Socket): void {
  socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"));
}

/**
 * Stands between a client and a server, `delayMs` away from each; `freeze` stops all bytes without closing anything, like
 * a network that is gone, `forget` stops those of the connections that are open now, like a NAT that has dropped them, and
 * `standStill` holds them for a while and loses none.
 */
export async function startProxy(
  target: string,
  delayMs = 0,
): Promise<Peer & { freeze(): void; forget(): void; standStill(ms: number): void }> {
  const { hostname, port } = new URL(target);
  let frozen = false;
  let held: (() => void)[] | undefined;
  const forgotten = new WeakSet<Socket>();
  const pass = (from: Socket, to: Socket) => {
    from.on("data", (chunk) => {
      const arrive = () => to.write(chunk);
      if (held) held.push(arrive);
      else if (!frozen && !forgotten.has(from) && !forgotten.has(to)) setTimeout(arrive, delayMs);
    });
  };
  const peer = await startPeer((client) => {
    const upstream = connect(Number(port), hostname);
    upstream.on("error", () => client.destroy());
    client.on("close", () => upstream.destroy());
    pass(client, upstream);
    pass(upstream, client);
  });
  return {
    ...peer,
    freeze() {
      frozen = true;
    },
    forget() {
      for (const client of peer.sockets) forgotten.add(client);
    },
    standStill(ms) {
      held = [];
      setTimeout(() => {
        const all = held ?? [];
        held = undefined;
        for (const arrive of all) arrive();
      }, ms);
    },
  };
}

/** Publishes a message whose headers are taken as they are: what a client of another language could send. */
export async function publishRaw(tcpUrl: string, subject: string, headers: string, payload: string): Promise<void> {
  const { hostname, port } = new URL(tcpUrl);
  const socket = connect(Number(port), hostname);
  const [head, whole] = [Buffer.byteLength(headers), Buffer.byteLength(headers + payload)];
  socket.write(
    `CONNECT {"headers":true,"verbose":false}\r\nHPUB ${subject} ${head} ${whole}\r\n${headers}${payload}\r\nPING\r\n`,
  );
  for await (const chunk of socket) if (String(chunk).includes("PONG")) break;
}
