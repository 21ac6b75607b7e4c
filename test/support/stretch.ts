import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A stretch of network between a client and a server, which counts how often the client has its say. */
export interface Stretch extends AsyncDisposable {
  readonly url: string;
  /** Flights towards the server: what the client sends at one go, having heard nothing new in between, is one. */
  readonly flights: number;
}

/** Stands `delayMs` away from either side of a WebSocket server. Opening the TCP connection costs nothing here. */
export async function startStretch(target: string, delayMs: number): Promise<Stretch> {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  let [flights, heard, sentAt] = [0, true, 0];

  function pass(from: Socket, to: Socket, arrived: () => void): void {
    from.on("data", (chunk) => void setTimeout(arrivesAt, delayMs, to, chunk, arrived));
  }
  function arrivesAt(to: Socket, chunk: Buffer, arrived: () => void): void {
    arrived();
    if (!to.destroyed) to.write(chunk);
  }
  function leaves(): void {
    if (heard || performance.now() - sentAt > delayMs) flights += 1;
    heard = false;
    sentAt = performance.now();
  }

  const proxy = createServer({ noDelay: true }, (client) => {
    const server = connect({ port: Number(port), host: hostname, noDelay: true });
    for (const socket of [client, server]) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        (socket === client ? server : client).destroy();
      });
    }
    client.on("data", leaves);
    pass(client, server, () => {});
    pass(server, client, () => {
      heard = true;
    });
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  return {
    url: `ws://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    get flights() {
      return flights;
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      proxy.close();
      await once(proxy, "close");
    },
  };
}
