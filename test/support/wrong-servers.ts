import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { ConnectionFailure } from "../../src/errors.ts";
import { type NatsServer, startNatsServer } from "../../src/testing/nats-server.ts";
import type { Certificates } from "./certificates.ts";
import { freePort } from "./monitoring.ts";
import { type Peer, silent, startPeer, upgradesOnly } from "./peers.ts";

/** A setting that cannot connect, and what is to be told of it. */
interface Wrong {
  readonly name: string;
  readonly url: string;
  readonly reason: ConnectionFailure;
  readonly says: RegExp;
  /** What workerd lets one know. @default as `says` */
  readonly workerdSays?: RegExp;
  /** It takes all of its time. */
  readonly slow?: true;
}

export interface WrongServers extends AsyncDisposable {
  readonly all: readonly Wrong[];
  /** How many connections are still open to those that keep them open themselves. */
  open(): number;
}

const secret = "s3cr3t%40wrong";
const withSecret = (url: string) => url.replace("//", `//user:${secret}@`);

/** One of each kind. Their URLs have a user and a password in them: no failure may tell these. */
export async function startWrongServers({ cert, key }: Pick<Certificates, "cert" | "key">): Promise<WrongServers> {
  const stack = new AsyncDisposableStack();
  const peers: Peer[] = [];
  const peer = async (behave: (socket: Socket) => void) => {
    const started = stack.use(await startPeer(behave));
    peers.push(started);
    return started.url;
  };
  const nats = async (config: string): Promise<NatsServer> => stack.use(await startNatsServer({ config }));
  const answering = (status: string) => (socket: Socket) =>
    void socket.once("data", () => socket.end(`HTTP/1.1 ${status}\r\nContent-Length: 2\r\n\r\nhi`));
  const afterUpgrade = (act: (socket: Socket) => void) => (socket: Socket) => {
    upgradesOnly(socket);
    socket.once("data", () => act(socket));
  };
  const https = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (_, response) => response.end("hi"));
  https.listen(0, "127.0.0.1");
  await once(https, "listening");
  stack.defer(() => void https.close().closeAllConnections());
  const tls = `127.0.0.1:${(https.address() as AddressInfo).port}`;
  const [locked, natsTls] = await Promise.all([
    nats(`authorization { user: user, password: "right" }`),
    nats(`websocket { host: "127.0.0.1", port: -1, tls { cert_file: "${cert}", key_file: "${key}" } }`),
  ]);

  const all: Wrong[] = [
    {
      name: "nobody",
      url: `ws://127.0.0.1:${await freePort()}`,
      reason: "address",
      says: /refuses connections \(ECONNREFUSED\)/,
      workerdSays: /drops connections/,
    },
    {
      name: "an unknown name",
      url: "wss://nowhere.invalid",
      reason: "address",
      says: /a name that DNS does not know \(E/,
      workerdSays: /its name is unknown/,
    },
    {
      name: "a peer that says nothing",
      url: await peer(silent),
      reason: "address",
      says: /does not answer within/,
      slow: true,
    },
    {
      name: "one that hangs up",
      url: await peer((socket) => socket.destroy()),
      reason: "address",
      says: /drops connections/,
    },
    {
      name: "a web server",
      url: await peer(answering("404 Not Found")),
      reason: "websocket",
      says: /answers HTTP 404 and opens no WebSocket/,
    },
    {
      name: "one that wants something else",
      url: await peer(answering("400 Bad Request")),
      reason: "websocket",
      says: /answers HTTP 400 and opens no WebSocket/,
    },
    {
      name: "an edge that has no origin",
      url: await peer(answering("522 ")),
      reason: "address",
      says: /cannot be reached \(HTTP 522\)/,
    },
    {
      name: "NATS's TCP listener",
      url: locked.tcpUrl.replace("nats:", "ws:"),
      reason: "websocket",
      says: /does not speak HTTP/,
      workerdSays: /speaks no HTTP, but TLS or NATS over TCP/,
    },
    {
      name: "a proxy with nobody behind it",
      url: await peer(upgradesOnly),
      reason: "websocket",
      says: /took the WebSocket and sent no INFO/,
      slow: true,
    },
    {
      name: "one that closes at once",
      url: await peer(afterUpgrade((socket) => socket.end(Buffer.of(0x88, 2, 3, 0xe8)))),
      reason: "websocket",
      says: /took the WebSocket and closed it \(1000\)/,
    },
    {
      name: "another WebSocket",
      url: await peer(afterUpgrade((socket) => socket.write(Buffer.from([0x81, 5, ...Buffer.from("hello")])))),
      reason: "websocket",
      says: /is not NATS's INFO/,
    },
    {
      name: "TLS of an authority unknown",
      url: `wss://${tls}`,
      reason: "tls",
      says: /shows a TLS certificate that this runtime does not trust \(/,
      workerdSays: /fails at TLS/,
    },
    {
      name: "TLS, asked without",
      url: `ws://${tls}`,
      reason: "tls",
      says: /expects TLS\. Begin its URL with wss:/,
      workerdSays: /speaks no HTTP, but TLS or NATS over TCP/,
    },
    {
      name: "NATS's TLS, asked without",
      url: natsTls.url,
      reason: "tls",
      says: /expects TLS\. Begin its URL with wss:/,
    },
    {
      name: "no TLS, asked for",
      url: locked.url.replace("ws:", "wss:"),
      reason: "tls",
      says: /does not speak TLS\. Begin its URL with ws:/,
    },
    {
      name: "a wrong password",
      url: locked.url,
      reason: "authentication",
      says: /Check the user and password in NATS_URL/,
    },
  ];
  return {
    all: all.map((wrong) => ({ ...wrong, url: withSecret(wrong.url) })),
    open: () => peers.reduce((sum, { sockets }) => sum + sockets.size, 0),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}
