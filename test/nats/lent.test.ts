import { ClosedConnectionError, headers, RequestError } from "@nats-io/nats-core";
import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { borrow } from "../../src/nats/borrowed.ts";
import { type Connection, connect } from "../../src/nats/connection.ts";
import { type LendingOptions, lend } from "../../src/nats/lent.ts";
import { errorToWire, type Lender, type LentSession, type RemoteLender } from "../../src/nats/remote.ts";
import { publish } from "../../src/publish/publish.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { monitoring } from "../support/monitoring.ts";
import { silent, startPeer, startProxy } from "../support/peers.ts";
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

/** What a borrower would ask. */
const asked = (subject: string) => ({ subject, payload: "", timeout: 5_000, version: "" });

async function versionOf(lender: Lender): Promise<string> {
  const about = await lender.about(5_000);
  return "info" in about ? about.info.version : "";
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
      message: expect.not.stringMatching(/npx sortie.*npx sortie/), // it says once what to do
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
    const [idle, other] = [await lender.session(await versionOf(lender)), await borrowing(lender)];
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
    const [major, minor] = first.info?.version.split(".") ?? [];
    const alike = await lender.session(`${major}.${minor}.999`);
    expect(await alike.request({ ...asked("$JS.API.INFO"), version: `${major}.${minor}.999` })).toHaveProperty(
      "message",
    );
    await alike.end();
    expect(await (await lender.session("2.0.0")).next()).toEqual([
      { closed: expect.objectContaining({ code: "connection-lost" }) },
    ]);
    await proxy[Symbol.asyncDispose]();
  });

  it("lets those who pull ask for no more at once than it may hold, and who waits too long is told to ask again", async ({
    expect,
  }) => {
    await using system = await startSystem(app, { config: "max_payload: 10KB" });
    const lender = lending((ms) => connect({ url: system.server.url }, ms), { bytes: 60_000 }); // four messages
    const pulling = async (who: string) => {
      const session = await lender.session(await versionOf(lender));
      const pulls = ["1", "2", "3"].map((n) => ({
        publish: {
          subject: "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker",
          payload: JSON.stringify({ batch: 100, max_bytes: 1_000_000, expires: 30_000_000_000 }),
          reply: `_INBOX.${who}.${n}`,
        },
      }));
      await session.send([{ subscribe: 1, subject: `_INBOX.${who}.*` }, ...pulls]);
      return session;
    };
    const waiting = async () => (await system.jsm.consumers.info("JOBS", "worker")).num_waiting;
    const [first, second] = [await pulling("first"), await pulling("second")];
    await expect.poll(waiting).toBe(4);
    await first.end();
    await expect.poll(waiting).toBe(3);
    const third = await pulling("third");
    await expect.poll(waiting).toBe(4);
    const heard: unknown[] = [];
    while (heard.length < 2) for (const news of await third.next()) heard.push("message" in news ? news.message : news);
    expect(heard).toMatchObject(["2", "3"].map((n) => ({ subject: `_INBOX.third.${n}` })));
    expect(new TextDecoder().decode((heard[0] as { headers: Uint8Array }).headers)).toMatch(/^NATS\/1.0 409 /);
    await Promise.all([second.end(), third.end()]);
  });

  it("counts headers, and what is sent without asking until it has left", async ({ expect }) => {
    await using system = await startSystem(app);
    await using proxy = await startProxy(system.server.url);
    const lender = lending((ms) => connect({ url: proxy.url }, ms), { bytes: 40_000_000 });
    const version = await versionOf(lender);
    const [hearing, sending] = [await lender.session(version), await lender.session(version)];
    await hearing.send([{ subscribe: 1, subject: "flood" }]);
    await hearing.request({ ...asked("$JS.API.INFO"), version });
    const large = headers();
    large.set("X", "y".repeat(900_000));
    const flood = async (count: number) => {
      for (let n = 0; n < count; n++) system.tcp.publish("flood", "", { headers: large });
      await system.tcp.flush();
      await lender.request({ ...asked("$JS.API.INFO"), version }); // after them, over the same connection
    };
    const hears = async () => (await hearing.next()).map((one) => ("closed" in one ? one.closed : "message"));
    await flood(10);
    expect([await hears(), await hears()]).toEqual([Array(9).fill("message"), ["message"]]); // RPC takes 32 MiB
    await flood(12);
    expect(await hears()).toEqual([expect.objectContaining({ code: "overloaded" })]);
    proxy.freeze();
    const payload = "x".repeat(1_000_000);
    await sending.send(Array.from({ length: 41 }, () => ({ publish: { subject: "jobs.kept", payload } })));
    expect(await sending.next()).toEqual([{ closed: expect.objectContaining({ code: "overloaded" }) }]);
  });

  it("may be kept for no time at all; without answers, or over none, there is none, and who asks is told why", async ({
    expect,
  }) => {
    await using system = await startSystem(app, { config: functionDenied("subscribe", "_INBOX.>") });
    await using peer = await startPeer(silent);
    const brief = await borrowing(lending((ms) => connect({ url: system.server.url }, ms), { idleMs: 0 }));
    for (const sequence of [1, 2, 3]) {
      expect(await publish(brief, outgoing("jobs.kept"), 5_000)).toMatchObject({ sequence });
    }
    const deaf = await borrowing(lending(asFunction(system.server)));
    await expect(publish(deaf, outgoing("jobs.kept"), 5_000)).rejects.toMatchObject({
      code: "connection-failed",
      message: expect.stringContaining("Permissions Violation for Subscription"),
    });
    const failures: unknown[] = [];
    const nowhere = lending((ms) => connect({ url: peer.url }, Math.min(ms, 200)), {
      onFailed: (e) => failures.push(e),
    });
    expect(await nowhere.about(5_000)).toMatchObject({
      error: { message: expect.stringContaining("does not answer") },
    });
    expect(await nowhere.about(1)).toMatchObject({
      error: { code: "connection-failed", message: expect.stringMatching(/within 1 ms: .*does not answer/) },
    });
    expect(failures).toHaveLength(1);
  });

  it("that is lost is told as that, however the client puts it", ({ expect }) => {
    const errors = [new ClosedConnectionError(), new RequestError("connection closed")];
    for (const error of errors) expect(errorToWire(error)).toMatchObject({ kind: "sortie", code: "connection-lost" });
  });
});
