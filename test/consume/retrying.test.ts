import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import {
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type Message,
  RetryAfterError,
  type RetryPolicy,
} from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job, "results.a": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

class Busy extends Error {
  override name = "Busy";
}
class VeryBusy extends Busy {
  override name = "VeryBusy";
}

function worker(retry: RetryPolicy) {
  return defineConsumer(jobs, "worker", { filter: "jobs.a", deadLetter: "dead.jobs", retry });
}

describe("the rules of a policy", () => {
  const retry: RetryPolicy = {
    attempts: 4,
    backoff: fixed(10),
    rules: [
      { on: VeryBusy, do: "dead-letter" },
      { on: Busy, do: { after: "600ms" } },
      { on: (error) => String(error).includes("old news"), do: "discard" },
      { on: TypeError, do: { inPlace: 2, delay: "10ms" } },
      { on: RangeError, do: "retry" },
    ],
  };

  it("decide by class or predicate, the first that matches", async () => {
    const errors = [new VeryBusy(), new Error("old news"), new RangeError()];
    const app = createApp({ streams: [jobs, dead] }).on(worker(retry), ({ data }) => {
      throw errors[data.n];
    });
    system = await startSystem(app);
    for (const n of errors.keys()) await system.publish("jobs.a", { n });
    const { consumers } = await system.invoke();
    expect(consumers[0]).toMatchObject({ deadLettered: 1, discarded: 1, acked: 1 });
    await system.settle();
    expect(system.events.filter(({ sequence }) => sequence === 1)).toMatchObject([
      { event: "dead-lettered", reason: "non-retriable", error: "VeryBusy: " },
    ]);
    expect(system.events.filter(({ sequence }) => sequence === 2)).toMatchObject([
      { event: "discarded", error: "Error: old news" },
    ]);
    expect(system.events.filter(({ sequence }) => sequence === 3).map(({ event }) => event)).toEqual([
      "retried",
      "retried",
      "retried",
      "dead-lettered",
    ]);
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(2);
  });

  it("start it again in place, as often as they say, and each start is an attempt", async () => {
    const starts: { attempt: number; invocation: number }[] = [];
    let invocation = 0;
    const app = createApp({ streams: [jobs, dead] }).on(worker(retry), async ({ attempt }, { publish }) => {
      starts.push({ attempt, invocation });
      await publish("results.a", { n: attempt });
      if (attempt < 4) throw new TypeError("once more");
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 1, retried: 1 });
    expect(starts.map(({ attempt }) => attempt)).toEqual([1, 2, 3]);
    invocation += 1;
    await system.settle();
    expect(starts.at(-1)).toEqual({ attempt: 4, invocation: 1 });
    // what the attempts that failed had prepared was never sent
    const { subjects } = (await system.jsm.streams.info("JOBS", { subjects_filter: ">" })).state;
    expect(subjects).toEqual({ "results.a": 1 });
  });

  it("wait as long as they say", async () => {
    const starts: number[] = [];
    const app = createApp({ streams: [jobs, dead] }).on(worker(retry), ({ attempt }) => {
      starts.push(Date.now());
      if (attempt === 1) throw new Busy();
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    await system.settle();
    expect((starts[1] ?? 0) - (starts[0] ?? 0)).toBeGreaterThanOrEqual(600);
  });
});

describe("an HTTP service that says when to come again", () => {
  it.each<[string, (response: Response) => unknown]>([
    ["its Response is thrown", (response) => response],
    ["an error has its Response", (response) => Object.assign(new Error("503"), { response })],
    [
      "an error has its headers as an object",
      ({ headers }) => Object.assign(new Error("503"), { response: { headers: Object.fromEntries(headers) } }),
    ],
  ])("is left alone until then where %s", async (_, thrown) => {
    let asked = 0;
    await using service = await startService((response) => {
      asked += 1;
      if (asked === 1) response.writeHead(503, { "Retry-After": "1" });
      response.end();
    });
    const starts: number[] = [];
    const app = createApp({ streams: [jobs, dead] }).on(worker({ attempts: 3, backoff: fixed(10) }), async () => {
      starts.push(Date.now());
      const response = await fetch(service.url);
      if (!response.ok) throw thrown(response);
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    await system.settle();
    expect(starts).toHaveLength(2);
    expect((starts[1] ?? 0) - (starts[0] ?? 0)).toBeGreaterThanOrEqual(1_000);
  });
});

describe("retries that are far off", () => {
  const limited = defineStream("LIMITED", { subjects: { "limited.a": Job } });
  const bounded = defineConsumer(limited, "bounded", { deadLetter: "dead.limited", maxAckPending: 100 });

  it("do not hold up the messages behind them, five times as many as may be outstanding", async () => {
    const handled: number[] = [];
    const app = createApp({ streams: [limited, dead] }).on(bounded, ({ data }) => {
      if (data.n < 500) throw new RetryAfterError("in ten minutes", "10m");
      handled.push(data.n);
    });
    system = await startSystem(app);
    for (let n = 0; n < 520; n++) await system.publish("limited.a", { n });
    let retried = 0;
    await expect
      .poll(async () => {
        retried += (await system.invoke()).consumers[0]?.retried ?? 0;
        return handled.length;
      })
      .toBe(20);
    expect(retried).toBe(500);
    expect(await system.jsm.consumers.info("LIMITED", "bounded")).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
    // all of them wait, and another consumer of the stream sees what it always saw
    expect((await system.jsm.streams.info("SORTIE_PARKED")).state.messages).toBe(500);
    expect((await system.jsm.streams.info("LIMITED")).state.messages).toBe(520);
    expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 0, returned: 0, ended: "drained" });
  });

  it("are the same message when they come again", async () => {
    const seen: Message[] = [];
    const app = createApp({ streams: [limited, dead] }).on(bounded, (message) => {
      seen.push(message);
      if (message.attempt === 1) throw new RetryAfterError("later", "5s");
    });
    system = await startSystem(app);
    await system.publish("limited.a", { n: 1 }, "an-id");
    await expect.poll(async () => (await system.invoke()) && seen.length, { timeout: 20_000 }).toBe(2);
    const [first, second] = seen as [Message, Message];
    expect(second).toEqual({ ...first, attempt: 2, headers: second.headers });
    expect((await system.jsm.streams.info("SORTIE_PARKED")).state.messages).toBe(0);
    expect((await system.jsm.streams.info("SORTIE_ATTEMPTS")).state.messages).toBe(0);
  });
});

async function startService(answer: (response: import("node:http").ServerResponse) => void) {
  const server = createServer((_, response) => answer(response));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
