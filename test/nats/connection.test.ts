import { inspect } from "node:util";
import { afterEach, describe, expect, it } from "vitest";
import { assertLoggedIn, connect, disconnect } from "../../src/nats/connection.ts";
import { within } from "../../src/nats/within.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { makeOperator } from "../support/operator.ts";
import { answersHttp, type Peer, silent, startPeer, startProxy, upgradesOnly } from "../support/peers.ts";

let open: AsyncDisposable[] = [];
const using = <T extends AsyncDisposable>(resource: T) => {
  open.push(resource);
  return resource;
};
afterEach(async () => {
  for (const resource of open.toReversed()) await resource[Symbol.asyncDispose]();
  open = [];
});

async function timed<T>(promise: Promise<T>) {
  const started = Date.now();
  const outcome = await promise.then(
    () => "connected",
    (error: Error) => error.message,
  );
  return { outcome, ms: Date.now() - started };
}

describe("connecting", () => {
  it.each([
    ["says nothing", silent],
    ["upgrades and says nothing more", upgradesOnly],
    ["is a web server", answersHttp],
    ["hangs up", (socket: { destroy(): void }) => socket.destroy()],
  ])("gives up in time, naming the host, where the peer %s", async (_, behave) => {
    const peer: Peer = using(await startPeer(behave));
    const { outcome, ms } = await timed(connect({ url: peer.url }, 400));
    expect(outcome).toContain(`Could not connect to NATS at ${peer.url}`);
    expect(ms).toBeLessThan(800);
    await expect.poll(() => peer.sockets.size, { timeout: 500 }).toBe(0);
  });

  it("leaves nothing behind where the peer says nothing, nor dials again", async () => {
    let dialled = 0;
    const peer = using(
      await startPeer(() => {
        dialled += 1;
      }),
    );
    await Promise.all(Array.from({ length: 10 }, () => timed(connect({ url: peer.url }, 300))));
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect({ dialled, open: peer.sockets.size }).toEqual({ dialled: 10, open: 0 });
  });

  it("gives up at once where nobody listens", async () => {
    const { url, [Symbol.asyncDispose]: close } = await startPeer(silent);
    await close();
    const { outcome, ms } = await timed(connect({ url }, 2_000));
    expect(outcome).toContain(`Could not connect to NATS at ${url}: it refuses connections (ECONNREFUSED). Check`);
    expect(ms).toBeLessThan(1_500);
  });

  it("gives up at once where the runtime does not even try", async () => {
    const { outcome, ms } = await timed(connect({ url: "ws://127.0.0.1:1" }, 2_000)); // a port that fetch refuses
    expect(outcome).toContain("Could not connect to NATS at ws://127.0.0.1:1: it has a port that runtimes refuse");
    expect(ms).toBeLessThan(1_500);
  });

  it.each([
    ["nats://h:4222", /expected a WebSocket URL such as .* got nats:\/\/…/],
    ["h:8080", /expected a WebSocket URL/],
    ["", /got something that is no URL/],
    ["user:s3cret@h", /got something that is no URL|expected a WebSocket URL/],
  ])("refuses %j with what it expected", async (url, message) => {
    const { outcome } = await timed(connect({ url }, 500));
    expect(outcome).toMatch(message);
    expect(outcome).not.toContain("s3cret");
  });

  it.each([
    [
      "a user and password in the URL",
      `authorization { user: u, password: "p@ss" }`,
      (url: string) => ({ url: url.replace("//", "//u:p%40ss@") }),
    ],
    ["a token", `authorization { token: t0ken }`, (url: string) => ({ url, token: "t0ken" })],
  ])("logs in with %s, and never tells it", async (_, config, server) => {
    const nats = using(await startNatsServer({ config }));
    const connection = await connect(server(nats.url), 5_000);
    await connection.confirmed;
    disconnect(connection);
    const wrong =
      server(nats.url).url === nats.url
        ? { url: nats.url, token: "wr0ng" }
        : { url: nats.url.replace("//", "//u:wr0ng@") };
    const { outcome } = await timed(connect(wrong, 2_000).then((refused) => refused.confirmed));
    expect(outcome).toContain(`Could not connect to NATS at ${nats.url}: `);
    expect(outcome).toMatch(/Authorization Violation|WebSocket/);
    expect(outcome).not.toMatch(/wr0ng|p@ss|t0ken/);
  });
});

describe("several servers", () => {
  it("are tried one after the other, a dead one and a black hole for their share of the time alone", async () => {
    const [nats, hole, dead] = [
      using(await startNatsServer()),
      using(await startPeer(silent)),
      await startPeer(silent),
    ];
    await dead[Symbol.asyncDispose]();
    const url = ` ${hole.url},${nats.url}, ${dead.url},`;
    const all = await Promise.all(
      Array.from({ length: 6 }, async () => {
        const connection = await connect({ url }, 3_000);
        await connection.confirmed;
        disconnect(connection);
      }),
    );
    expect(all).toHaveLength(6);
    await expect.poll(() => hole.sockets.size).toBe(0);
  });

  it("have each its own user and password, and are tried in every order", async () => {
    const config = (user: string) => `authorization { user: ${user}, password: ${user} }`;
    const [one, two] = [await startNatsServer({ config: config("a") }), await startNatsServer({ config: config("b") })];
    using(one);
    using(two);
    const url = `${one.url.replace("//", "//a:a@")},${two.url.replace("//", "//b:b@")}`;
    const met = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const connection = await connect({ url }, 5_000);
        await connection.confirmed;
        const port = connection.info?.port;
        disconnect(connection);
        return port;
      }),
    );
    expect(new Set(met).size).toBe(2);
  });

  it("that all fail are told of together, by the one that let it in furthest", async () => {
    const [web, dead] = [using(await startPeer(answersHttp)), await startPeer(silent)];
    await dead[Symbol.asyncDispose]();
    const [first, second] = [web.url.replace("//", "//u:s3cret@"), dead.url.replace("//", "//u:s3cret@")];
    const error: unknown = await connect({ url: `${first},${second}` }, 2_000).catch((error: unknown) => error);
    expect(error).toMatchObject({ code: "connection-failed", reason: "websocket" });
    const { message } = error as Error;
    expect(message).toMatch(/^Could not connect to any of 2 NATS servers\. /);
    expect(message).toContain(`${web.url}: it answers HTTP 200 and opens no WebSocket.`);
    expect(message).toContain(`${dead.url}: it refuses connections (ECONNREFUSED).`);
    expect(inspect(error, { depth: 10 })).not.toContain("s3cret");
  });

  it("are refused where one of them is no URL, without its words", async () => {
    const { outcome } = await timed(connect({ url: "ws://a:1,wss://u:s3cr,et@b" }, 500));
    expect(outcome).toMatch(/^NATS_URL, number \d of 3: expected a WebSocket URL .* A comma in a password is `%2C`/);
    expect(outcome).not.toMatch(/s3cr|et@/);
  });
});

describe("a server or an account that has as many connections as it may", () => {
  const operator = makeOperator({ conn: 1 });
  it.each([
    ["server", { config: "max_connections: 1" }, {}],
    ["account", { config: operator.config }, { creds: operator.creds() }],
  ])("tells so: the %s", async (_, options, login) => {
    const nats = using(await startNatsServer(options));
    const first = await connect({ url: nats.url, ...login }, 5_000);
    await first.confirmed;
    const second = connect({ url: nats.url, ...login }, 5_000).then(({ confirmed }) => confirmed);
    await expect(second).rejects.toMatchObject({
      reason: "limit",
      message: expect.stringMatching(/maximum .*connections/),
    });
    disconnect(first);
  });
});

describe("a login that may not subscribe to its answers", () => {
  it("is told so, by whom it asks for something", async () => {
    const nats = using(await startNatsServer({ config: functionDenied("subscribe", "_INBOX.>") }));
    const connection = await asFunction(nats)(5_000);
    await connection.confirmed;
    const asked = await connection.request("$JS.API.INFO", "", { timeout: 500 }).catch((error: unknown) => error);
    await expect(assertLoggedIn(connection)).rejects.toMatchObject({
      code: "connection-failed",
      reason: "permission",
      message: expect.stringMatching(/Permissions Violation for Subscription to "_INBOX/),
    });
    expect(asked).toBeInstanceOf(Error);
    disconnect(connection);
  });
});

describe("disconnecting", () => {
  it("does not wait for a peer that is gone", async () => {
    const nats = using(await startNatsServer());
    const proxy = using(await startProxy(nats.url));
    const connection = await connect({ url: proxy.url }, 5_000);
    proxy.freeze();
    disconnect(connection);
    const { ms } = await timed(connection.closed());
    expect(ms).toBeLessThan(700);
  });
});

describe("within", () => {
  it("answers as the promise does, in time", async () => {
    await expect(within(1_000, "x", Promise.resolve(1))).resolves.toBe(1);
    await expect(within(1_000, "x", Promise.reject(new Error("no")))).rejects.toThrow("no");
  });

  it("gives up, and ignores what comes later", async () => {
    const late = Promise.withResolvers<never>();
    await expect(within(20, "the thing", late.promise)).rejects.toThrow("the thing took longer than the 20 ms it had");
    late.reject(new Error("later"));
  });
});
