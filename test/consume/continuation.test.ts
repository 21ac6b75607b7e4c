import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import * as z from "zod";
import { serve as serveLambda } from "../../src/adapters/aws-lambda.ts";
import { serve as serveWorker } from "../../src/adapters/cloudflare.ts";
import type { OnMore } from "../../src/consume/continuation.ts";
import { planContinuation } from "../../src/consume/fan-out.ts";
import type { Lease, Place } from "../../src/consume/places.ts";
import { planRemainder } from "../../src/consume/remainder.ts";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { altered } from "../support/connections.ts";
import { type Monitoring, monitoring } from "../support/monitoring.ts";
import { startProxy } from "../support/peers.ts";
import { type System, startSystem } from "../support/system.ts";

describe("planContinuation", () => {
  const going = { ms: 1_000, budgetMs: 1_000, max: 8, others: 0, free: 8, placed: false };
  const left = (ready: number, done: number) => ({ ...going, consumers: [{ ready, done }] });

  it.each([
    ["nothing, where nothing is left", left(0, 100), 0],
    ["nothing, where nothing was done: more of the same would not help", left(100, 0), 0],
    ["one, where one more is through with it", left(100, 100), 1],
    ["as many as are through with it together", left(250, 100), 3],
    ["fewer, where this one had less time than the next ones", { ...left(600, 100), ms: 500 }, 3],
    ["no more than the maximum", left(1e6, 100), 8],
    ["no more than there are places", { ...left(1e6, 100), free: 2 }, 2],
    ["none that others are at already", { ...left(300, 100), others: 2, free: 6 }, 1],
    ["nothing, where enough others are at it", { ...left(300, 100), others: 3, free: 5 }, 0],
    ["itself in any case, with a place of its own", { ...left(300, 100), others: 7, free: 0, placed: true }, 1],
    ["itself and more, as long as there are places", { ...left(1e6, 100), others: 2, free: 3, placed: true }, 4],
    ["nothing, where there are fewer places than before", { ...left(1e6, 100), others: 7, free: -1, placed: true }, 0],
    [
      "what the consumer needs that has most left",
      {
        ...going,
        consumers: [
          { ready: 10, done: 10 },
          { ready: 40, done: 10 },
        ],
      },
      4,
    ],
  ])("starts %s", (_, one, count) => {
    expect(planContinuation(one)).toBe(count);
  });
});

describe("planRemainder", () => {
  const known = { isHeld: false, waiting: {}, putOff: [], asked: undefined, maxAckPending: -1, now: 1_000 } as const;
  const late = { dueAt: 900, outstanding: true };
  const soon = { dueAt: 1_500.2, outstanding: true };
  const parked = { dueAt: 9_000, outstanding: false };

  it("says nothing that is not known", () => {
    expect(planRemainder(known)).toEqual({ ready: 0 });
  });

  it("counts what waits and what was put off, and not what is parked elsewhere", () => {
    const putOff = [soon, parked];
    expect(planRemainder({ ...known, waiting: { own: 7 }, putOff })).toEqual({ lag: 8, nextDueIn: 501, ready: 7 });
    expect(planRemainder({ ...known, waiting: { own: 0 }, putOff: [late, soon] })).toMatchObject({
      nextDueIn: 0,
      ready: 1,
    });
  });

  it("has the server's word, less what was being settled meanwhile", () => {
    const asked = (num_ack_pending: number) => ({ info: { num_pending: 5, num_ack_pending }, unsettled: 10 });
    expect(planRemainder({ ...known, waiting: { own: 50 }, asked: asked(13) })).toEqual({ lag: 8, ready: 5 });
    expect(planRemainder({ ...known, asked: asked(0), putOff: [soon] })).toMatchObject({ lag: 6, ready: 5 });
  });

  it("finds what was delivered before where the server gave all that was asked for until the end, and what is parked", () => {
    const served = { ...known, isServed: true, waiting: { own: 0, parked: 3 } };
    const asked = { info: { num_pending: 0, num_ack_pending: 60 }, unsettled: 10 };
    expect(planRemainder({ ...served, asked, putOff: [soon] })).toMatchObject({ lag: 50, ready: 52 });
    expect(planRemainder({ ...known, isServed: true, waiting: { own: 0 } })).toMatchObject({ ready: 1 });
    expect(planRemainder({ ...known, asked, waiting: { own: 0 } })).toMatchObject({ ready: 0 }); // in others' hands
  });

  it("finds nothing to do at a consumer that is full, or could not be pulled from", () => {
    const full = { ...known, waiting: { own: 7 }, putOff: [soon], maxAckPending: 1 };
    expect(planRemainder(full)).toEqual({ lag: 8, nextDueIn: 501, ready: 0 });
    expect(planRemainder({ ...known, isHeld: true, waiting: { own: 7 } })).toEqual({ lag: 7, ready: 0 });
  });
});

const jobs = defineStream("JOBS", { subjects: { "jobs.do": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", {
  concurrency: 2,
  deadLetter: "dead.jobs",
  retry: { attempts: 9, backoff: fixed(20) },
});

describe("an invocation that leaves something to do", () => {
  let monitor: Monitoring;
  let system: System;
  let handle: () => unknown;
  const slow = () => new Promise<unknown>((resolve) => setTimeout(resolve, 25));
  const app = createApp({ streams: [jobs, dead], fanOut: { max: 8, connections: 5 } }).on(worker, () => handle());

  beforeEach(async () => {
    handle = slow;
    monitor = await monitoring();
    system = await startSystem(app, monitor);
    await publish(300);
  });
  afterEach(async () => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
    await system[Symbol.asyncDispose]();
  });

  async function publish(count: number): Promise<void> {
    await Promise.all(Array.from({ length: count }, (_, n) => system.publish("jobs.do", { n })));
  }

  async function leases(): Promise<Lease[]> {
    const message = await system.jsm.streams.getMessage("SORTIE_PLACES", { last_by_subj: "sortie.places" });
    return message?.json<Lease[]>() ?? [];
  }

  async function takenBy(how: Parameters<System["invoke"]>[0] = {}): Promise<readonly Place[]> {
    let taken: readonly Place[] = [];
    await system.invoke({ budgetMs: 1_000, onMore: (places) => (taken = places), ...how });
    return taken;
  }

  it("has more to do where all that is left was delivered before, to one that died", async () => {
    const messages = await (await system.js.consumers.get("JOBS", "worker")).fetch({ max_messages: 300 });
    for await (const message of messages) message.nak();
    let asked = 0;
    const onMore = ({ length }: readonly Place[]) => {
      asked = length;
    };
    const { consumers } = await system.invoke({ budgetMs: 1_000, onMore });
    expect(consumers).toMatchObject([{ ended: "budget", more: true }]);
    expect(asked).toBeGreaterThan(1);
  });

  it("takes places by the server's clock, whatever its host's says, and holds none that a wrong clock has taken", async () => {
    const ahead = () => Date.now() + 3_600_000;
    expect((await takenBy({ now: ahead, deadline: ahead() + 1_000 })).length).toBeGreaterThan(0);
    for (const { until } of await leases()) expect(until - Date.now()).toBeLessThan(15_000);
    const tomorrow = Array.from({ length: 8 }, (_, n) => ({ id: `${n}`, until: Date.now() + 86_400_000 }));
    await system.js.publish("sortie.places", JSON.stringify(tomorrow));
    expect((await takenBy()).length).toBeGreaterThan(0);
  });

  // the answer to a close is not waited for longer than 250 ms
  it.each([60, 360])(
    "asks for others when the server, %i ms away and back, counts its own connection no more, and has taken their places",
    async (awayMs) => {
      await publish(300);
      await using proxy = await startProxy(system.server.url, awayMs / 2);
      const far = (ms: number) => connect({ url: proxy.url }, ms);
      const { promise: seen, resolve } = Promise.withResolvers<unknown>();
      const onMore: OnMore = async (places) => resolve([await monitor.connections(), places, await leases()]);
      const { continued } = await system.invoke({ budgetMs: 1_000 + 12 * awayMs, connect: far, onMore });
      const [connections, places, taken] = (await seen) as [unknown[], Place[], Lease[]];
      expect(connections).toEqual([]);
      expect(places.length).toBeGreaterThanOrEqual(2);
      expect(places.length).toBeLessThanOrEqual(3); // five connections, two of which are for others
      expect(taken).toEqual(places);
      expect(continued).toEqual({ asked: places.length });
    },
  );

  it("never takes more places than there are, however many end at the same time", async () => {
    await publish(600);
    const asked: Place[] = [];
    const onMore: OnMore = (places) => void asked.push(...places);
    await Promise.all(Array.from({ length: 8 }, () => system.invoke({ budgetMs: 1_000, onMore })));
    expect(asked).toHaveLength(3);
    expect(await leases()).toHaveLength(3);
  });

  it("never has more connections than the ceiling, where those it asks for are there at once", async () => {
    await publish(500);
    let [running, most, total] = [0, 0, 0];
    const start = (place?: Place): void => {
      running += 1;
      total += 1;
      const onMore: OnMore = (places) => places.forEach(start);
      void system.invoke({ budgetMs: 1_500, place, onMore }).finally(() => (running -= 1));
    };
    start();
    start();
    while (running > 0) most = Math.max(most, (await monitor.connections()).length);
    expect(most).toBeLessThanOrEqual(5);
    expect(total).toBeGreaterThan(6);
    const { num_pending, num_ack_pending } = await system.jsm.consumers.info("JOBS", "worker");
    expect([num_pending, num_ack_pending]).toEqual([0, 0]); // and nobody stopped before the end
  });

  it("hands its own place on, or gives it back when nothing is left", async () => {
    const [place, ...others] = await takenBy();
    const next = await takenBy({ place, budgetMs: 1_500 });
    const ids = async () => (await leases()).map(({ id }) => id);
    expect(next.length).toBeGreaterThan(0);
    expect(await ids()).toEqual([...others, ...next].map(({ id }) => id));
    handle = () => {};
    const { continued } = await system.invoke({ place: next[0], onMore: () => {} });
    expect(continued).toBeUndefined();
    const [back] = (await leases()).filter(({ ended }) => ended);
    expect(back).toMatchObject({ id: next[0]!.id });
    expect(back!.until).toBeLessThanOrEqual(Date.now() + 1_000); // as long as a close may take
  });

  it("loses the places of those that crash when their time is over", async () => {
    await takenBy();
    const rewrite = async (overMs: number) => {
      const crashed = (await leases()).map((lease) => ({ ...lease, until: Date.now() - overMs }));
      await system.js.publish("sortie.places", JSON.stringify(crashed));
      return takenBy();
    };
    expect(await rewrite(-1_000)).toEqual([]); // it takes places less than a second later
    expect((await rewrite(2_000)).length).toBeGreaterThan(0); // as much as clocks may be apart
  });

  it("does not connect for a place that is nearly over", async () => {
    const report = await system.invoke({
      place: { id: "x", until: Date.now() + 100 },
      connect: () => Promise.reject(),
    });
    expect(report).toMatchObject({
      consumers: [],
      continued: { asked: 0, error: expect.stringContaining("too late") },
    });
  });

  it("ends with its place at the latest", async () => {
    const started = Date.now();
    await system.invoke({ place: { id: "x", until: started + 1_000 }, budgetMs: 1_500 });
    expect(Date.now() - started).toBeLessThan(1_450);
  });

  it("reports what onMore throws, and does not wait for it beyond its time", async () => {
    const thrown = await system.invoke({
      budgetMs: 1_000,
      onMore() {
        throw new Error("no such queue");
      },
    });
    expect(thrown.continued).toEqual({ asked: expect.any(Number), error: "Error: no such queue" });
    expect(thrown.consumers[0]).toMatchObject({ ended: "budget", more: true });
    await system.jsm.streams.purge("SORTIE_PLACES");
    const started = Date.now();
    const { continued } = await system.invoke({ budgetMs: 1_000, onMore: () => new Promise(() => {}) });
    expect(continued?.error).toContain("asking for more invocations took longer");
    expect(Date.now() - started).toBeLessThan(1_400);
  });

  it("goes on nowhere where places cannot be taken, and says why", async () => {
    await system.jsm.streams.delete("SORTIE_PLACES");
    const onMore = vi.fn();
    const { continued } = await system.invoke({ budgetMs: 1_000, onMore });
    expect(continued).toEqual({ asked: 0, error: expect.stringMatching(/"SORTIE_PLACES".*npx sortie apply/) });
    expect(onMore).not.toHaveBeenCalled();
  });

  it("goes on nowhere where all that it did was to fail", async () => {
    handle = async () => {
      await slow();
      throw new Error("the other side is down");
    };
    const onMore = vi.fn();
    const { consumers } = await system.invoke({ budgetMs: 1_000, onMore });
    expect(consumers[0]).toMatchObject({ acked: 0, more: true });
    expect(onMore).not.toHaveBeenCalled();
  });

  it("costs nothing where nobody goes on, nor where nothing is left", async () => {
    const asked: string[] = [];
    const connect = async () => {
      const connection = await system.connect();
      return altered(connection, {
        request: (subject, ...rest) => {
          if (/CONSUMER\.INFO|places/i.test(subject)) asked.push(subject);
          return connection.request(subject, ...rest);
        },
      });
    };
    await system.invoke({ budgetMs: 2_000, connect });
    handle = () => {};
    await system.invoke({ connect, onMore: () => {} });
    const first = "$JS.API.CONSUMER.INFO.JOBS.worker"; // beside the first pull, with or without
    expect(asked).toEqual([first, first]);
  });

  it("as a Lambda function takes its place from its event, and is not repeated by Lambda where it fails", async () => {
    vi.stubEnv("NATS_URL", system.server.url);
    vi.spyOn(console, "log").mockReturnValue();
    const asked: Place[] = [];
    const { pull } = serveLambda(app, { onMore: (places) => void asked.push(...places) });
    const context = (ms: number) => ({ getRemainingTimeInMillis: () => ms + 250 });
    await pull({ id: "cdc73f9d-aea9-11e3-9d5a-835b769c0d9c", source: "aws.events" }, context(1_500));
    expect(asked.length).toBeGreaterThan(0);
    handle = () => {};
    const { consumers } = await pull(asked[0], context(5_000));
    expect(consumers).toMatchObject([{ ended: "drained" }]);
    expect((await leases()).filter(({ ended }) => ended)).toMatchObject([{ id: asked[0]!.id }]);
    await system.jsm.consumers.delete("JOBS", "worker");
    expect((await pull(asked[1], context(5_000))).consumers).toMatchObject([{ ended: "failed" }]);
    await expect(pull({}, context(5_000))).rejects.toThrow("does not exist");
  });
});

it("how far to fan out has to be said, and leave a place", async () => {
  const bare = createApp({ streams: [jobs, dead] });
  const missing = expect.objectContaining({ code: "invalid-option", message: expect.stringContaining("fanOut") });
  const onMore = () => {};
  expect(() => serveLambda(bare, { onMore })).toThrow(missing);
  expect(() => serveWorker(bare, { onMore })).toThrow(missing);
  const invalid = expect.objectContaining({ code: "invalid-definition" });
  for (const fanOut of [{ max: 0 }, { max: 2, connections: 2 }, { max: 2, outside: -1 }])
    expect(() => createApp({ streams: [jobs], fanOut })).toThrow(invalid);
  const { fanOut } = createApp({ streams: [jobs], fanOut: { max: 8, connections: 6, outside: 0 } });
  expect(fanOut).toEqual({ max: 8, places: 6 });
});
