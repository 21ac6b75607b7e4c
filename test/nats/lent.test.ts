import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { borrow } from "../../src/nats/borrowed.ts";
import { type Connection, connect } from "../../src/nats/connection.ts";
import { type LendingOptions, lend } from "../../src/nats/lent.ts";
import type { Lender, LentSession, RemoteLender } from "../../src/nats/remote.ts";
import { publish } from "../../src/publish/publish.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { monitoring } from "../support/monitoring.ts";
import { startProxy } from "../support/peers.ts";
import { startSystem } from "../support/system.ts";

const text = z.union([z.string(), z.number()]);
const jobs = defineStream("JOBS", { subjects: { "jobs.do": text, "jobs.kept": text, "jobs.secret": text } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", { filter: "jobs.do", deadLetter: "dead.jobs" });
const app = createApp({ streams: [jobs, dead] }).on(worker, () => {});

function lending(open: (ms: number) => Promise<Connection>, options: Partial<LendingOptions> = {}): Lender {
  return lend({ connect: open, outstanding: 100, bytes: 1_000_000, idleMs: 30_000, ...options });
}

/** As Workers RPC does it: only data crosses, and a session can be used before it is there. */
function remote(lender: Lender): RemoteLender {
  const crossing = <Args extends unknown[], T>(call: (...args: Args) => Promise<T>) => {
    return async (...args: Args) => structuredClone(await call(...structuredClone(args)));
  };
  return {
    about: crossing((ms) => lender.about(ms)),
    request: crossing((asked) => lender.request(asked)),
    session(version) {
      const session: Promise<LentSession> = lender.session(version);
      return {
        send: crossing(async (orders) => (await session).send(orders)),
        request: crossing(async (asked) => (await session).request(asked)),
        next: crossing(async () => (await session).next()),
        end: crossing(async () => (await session).end()),
      };
    },
  };
}

async function borrowing(lender: Lender): Promise<Connection> {
  const about = await lender.about(5_000);
  if ("error" in about) throw new Error(JSON.stringify(about.error));
  return borrow(remote(lender), about, () => {});
}

const outgoing = (subject: string, text = "1") => ({
  stream: "JOBS",
  subject,
  payload: new TextEncoder().encode(text),
});

describe.concurrent("a connection that is lent", () => {
  it("does for an invocation what one of its own does, and refusals of the server reach who caused them", async ({
    expect,
  }) => {
    await using system = await startSystem(app, { config: functionDenied("publish", "jobs.secret") });
    const lender = lending(asFunction(system.server));
    await Promise.all(Array.from({ length: 20 }, (_, n) => system.publish("jobs.do", n)));
    const { consumers } = await system.invoke({ connect: () => borrowing(lender) });
    expect(consumers).toMatchObject([{ pulled: 20, acked: 20, unconfirmed: 0, ended: "drained" }]);
    const connection = await borrowing(lender);
    await expect(publish(connection, outgoing("jobs.secret"), 5_000)).rejects.toMatchObject({
      code: "permission-denied",
    });
    await expect(publish(connection, { ...outgoing("nobody.here"), stream: "" }, 1_000)).rejects.toMatchObject({
      code: "stream-missing",
    });
    expect(await publish(connection, outgoing("jobs.do"), 5_000)).toMatchObject({ stream: "JOBS" });
  });

  it("tells who pulls that the login may not", async ({ expect }) => {
    const config = functionDenied("publish", "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker");
    await using system = await startSystem(app, { config });
    const lender = lending(asFunction(system.server));
    const { consumers } = await system.invoke({ connect: () => borrowing(lender) });
    expect(consumers).toMatchObject([{ ended: "failed", error: expect.stringContaining("may not pull") }]);
  });

  it("is bounded, in requests and in bytes, and what the server would hang up for never leaves", async ({ expect }) => {
    await using system = await startSystem(app, { config: "max_payload: 10KB" });
    await using proxy = await startProxy(system.server.url, 20);
    const lender = lending((ms) => connect({ url: proxy.url }, ms), { outstanding: 2, bytes: 9_000 });
    const connection = await borrowing(lender);
    const ends = (payloads: string[]) =>
      Promise.all(
        payloads.map((text) =>
          connection.request("jobs.kept", text, { timeout: 5_000 }).then(
            () => "stored",
            (error: { code?: string }) => error.code,
          ),
        ),
      );
    expect(await ends(["1", "2", "3"])).toEqual(["stored", "stored", "overloaded"]);
    expect(await ends(["1".repeat(5_000), "2".repeat(5_000)])).toEqual(["stored", "overloaded"]);
    const roomy = await borrowing(lending((ms) => connect({ url: proxy.url }, ms)));
    await expect(roomy.request("jobs.kept", "1".repeat(11_000))).rejects.toMatchObject({ code: "payload-too-large" });
    expect(await ends(["1"])).toEqual(["stored"]);
    expect((await system.jsm.streams.info("JOBS")).state.messages).toBe(4);
  });

  it("ends for who does not take what was delivered, and for nobody else", async ({ expect }) => {
    await using system = await startSystem(app);
    const lender = lending((ms) => connect({ url: system.server.url }, ms), { bytes: 50_000 });
    const about = await lender.about(5_000);
    const version = "info" in about ? about.info.version : "";
    const [idle, other] = [await lender.session(version), await borrowing(lender)];
    await idle.send([{ subscribe: 1, subject: "flood" }]);
    await other.request("$JS.API.INFO", ""); // after it, over the same connection
    for (let n = 0; n < 60; n++) system.tcp.publish("flood", "x".repeat(1_000));
    await system.tcp.flush();
    await other.request("$JS.API.INFO", "");
    expect(await idle.next()).toEqual([{ closed: expect.objectContaining({ code: "overloaded" }) }]);
    expect(await publish(other, outgoing("jobs.do"), 5_000)).toMatchObject({ sequence: 1 });
  });

  it("that has gone silent is replaced, one that nobody uses is closed, and another server is not taken for the same", async ({
    expect,
  }) => {
    const monitor = await monitoring();
    await using system = await startSystem(app, monitor);
    const before = (await monitor.connections("all")).length;
    const proxy = await startProxy(system.server.url);
    const urls = [proxy.url];
    const lender = lending((ms) => connect({ url: urls.shift() ?? system.server.url }, ms), { idleMs: 200 });
    const first = await borrowing(lender);
    expect(await publish(first, outgoing("jobs.do"), 5_000)).toMatchObject({ sequence: 1 });
    first.subscribe("held.open", { callback() {} }); // or it would be idle
    await first.request("$JS.API.INFO", "");
    proxy.freeze();
    await expect(publish(first, outgoing("jobs.do"), 100)).rejects.toMatchObject({ code: "timed-out" });
    await first.closed();
    await expect.poll(async () => (await borrowing(lender)).info?.version).toBe(first.info?.version);
    expect((await monitor.connections("all")).length - before).toBe(2);
    await expect.poll(() => monitor.connections()).toHaveLength(1); // the frozen one, which the server has not missed yet
    expect(await (await lender.session("2.0.0")).next()).toEqual([
      { closed: expect.objectContaining({ code: "connection-lost" }) },
    ]);
    await proxy[Symbol.asyncDispose]();
  });
});
