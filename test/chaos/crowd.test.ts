import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { breakerSubject, companionOf, parks } from "../../src/define/own.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { bundleProgram } from "../support/bundle.ts";
import { type Agreement, concurrency, crowdApp, isBroken, openForMs, perSecond, perSecondAndKey } from "./crowd-app.ts";
import type { Membership } from "./crowd-member.ts";
import { type Observed, observe, unheardIn } from "./harness.ts";

const full = process.env.CHAOS === "full";
const mortality = full ? [false, true] : [true];
const members = full ? 8 : 4;
const mostDeaths = full ? 40 : 6; // the end is for coming to rest
const folder = mkdtempSync(join(tmpdir(), "sortie-crowd-"));
let observed: Observed;
let memberFile: string;

beforeAll(async () => {
  memberFile = await bundleProgram("crowd-member.ts", folder);
  observed = await observe(await startNatsServer());
});
afterAll(async () => {
  await observed.tcp.close();
  await observed.server.stop();
  rmSync(folder, { recursive: true });
});

interface Start {
  readonly n: number;
  readonly key: string;
  readonly attempt: number;
  readonly pid: number;
  readonly at: number;
}

/** Streams with messages in them, and the processes that work on these one invocation after the other. */
async function gather(agreement: Agreement, messages: readonly { n: number; key: string }[], mortal: boolean) {
  const { server, tcp } = observed;
  const log = join(folder, `${agreement}-${mortal}`);
  writeFileSync(log, "");
  const { app, jobs, dead, worker } = crowdApp(agreement, log);
  const jsm = await jetstreamManager(tcp);
  for (const { name } of [jobs, dead]) await jsm.streams.delete(name).catch(() => {});
  const connection = await connect({ url: server.url }, 5_000);
  await apply(connection, { streams: app.streams, consumers: [worker] });
  disconnect(connection);
  const js = jetstream(tcp);
  const publish = (some: typeof messages) =>
    Promise.all(some.map((message) => js.publish(`jobs.${agreement}`, JSON.stringify(message))));
  await publish(messages);
  const crowd = new Set<ChildProcess>();
  let deaths = 0;
  let over = false;

  function join1(): void {
    const membership: Membership = { url: server.url, agreement, log, mortal: mortal && deaths < mostDeaths };
    const child = spawn(process.execPath, [memberFile, JSON.stringify(membership)], { stdio: "ignore" });
    crowd.add(child);
    child.once("exit", () => {
      crowd.delete(child);
      if (over) return;
      deaths += 1;
      join1();
    });
  }
  for (let n = 0; n < members; n++) join1();

  return {
    worker,
    jsm,
    publish,
    /** Makes handlers fail, or succeed again. */
    down: (is: boolean) => (is ? writeFileSync(`${log}.down`, "") : rmSync(`${log}.down`)),
    get deaths() {
      return deaths;
    },
    starts: (): Start[] =>
      readFileSync(log, "utf8")
        .split("\n")
        .filter(Boolean)
        .map((line) => line.split(" "))
        .map(([n, key = "", attempt, pid, at]) => ({
          n: Number(n),
          key,
          attempt: Number(attempt),
          pid: Number(pid),
          at: Number(at),
        })),
    /** Answers what is in the dead letters then: after how many attempts, and of how many nobody heard how they ended. */
    async untilDone() {
      const left = async () => {
        const parked = parks(worker) ? [await jsm.consumers.info("SORTIE_PARKED", companionOf(worker))] : [];
        const infos = [await jsm.consumers.info(jobs.name, worker.name), ...parked];
        return infos.reduce((sum, { num_pending, num_ack_pending }) => sum + num_pending + num_ack_pending, 0);
      };
      await expect.poll(left, { timeout: 60_000, interval: 100 }).toBe(0);
      expect((await jsm.streams.info(jobs.name)).state.messages).toBe(0);
      const { state } = await jsm.streams.info(dead.name);
      const letters = [];
      for (let seq = 1; seq <= state.last_seq; seq++) letters.push(await jsm.streams.getMessage(dead.name, { seq }));
      return letters
        .filter((letter) => letter !== null)
        .map((letter) => ({
          n: letter.json<{ n: number }>().n,
          attempts: Number(letter.header.get("Sortie-Attempts")),
          unheard: unheardIn(letter.header),
        }))
        .toSorted((a, b) => a.n - b.n);
    },
    async [Symbol.asyncDispose]() {
      over = true;
      for (const child of crowd) {
        child.kill("SIGKILL");
        await once(child, "exit");
      }
    },
  };
}

const numbered = (count: number, key: (n: number) => string) =>
  Array.from({ length: count }, (_, n) => ({ n, key: key(n) }));

/** How often something comes up. */
const tally = (all: readonly string[]) =>
  all.reduce((times, one) => times.set(one, (times.get(one) ?? 0) + 1), new Map<string, number>());

describe("several invocations at a time, each in a process of its own", { timeout: 120_000, retry: 0 }, () => {
  const perKey = numbered(600, (n) => `key-${n % 150}`);

  it.runIf(full)("handle each key once while none of them dies", async () => {
    await using crowd = await gather("keys", perKey, false);
    expect(await crowd.untilDone()).toEqual([]);
    const times = tally(crowd.starts().map(({ key }) => key));
    expect([...times.values()]).toEqual(Array(150).fill(1));
  });

  it("lose no key where they die at any wait, and have written each down as handled", async () => {
    await using crowd = await gather(
      "keys",
      numbered(600, (n) => `mortal-${n % 150}`),
      true,
    );
    expect(await crowd.untilDone()).toEqual([]);
    expect(tally(crowd.starts().map(({ key }) => key)).size).toBe(150);
    const { state } = await crowd.jsm.streams.info("SORTIE_KEYS", { subjects_filter: ">" });
    const kept = await Promise.all(
      Object.keys(state.subjects ?? {}).map(async (subject) => {
        const record = await crowd.jsm.streams.getMessage("SORTIE_KEYS", { last_by_subj: subject });
        return [atob(subject.split(".").at(-1) ?? ""), record?.json<{ handled?: true }>().handled] as const;
      }),
    );
    const mortal = kept.filter(([key]) => key.startsWith("mortal-"));
    expect(mortal.filter(([, handled]) => !handled).length).toBeLessThanOrEqual(crowd.deaths); // acked, and killed before its word
    expect(crowd.deaths).toBeGreaterThan(0); // at random: there may be few
  });

  it("dead-letter who breaks the batches that they take, and nobody else, where they die at any wait", async () => {
    const messages = numbered(600, () => "any");
    await using crowd = await gather("batches", messages, true);
    const letters = await crowd.untilDone();
    expect(letters.map(({ n }) => n)).toEqual(messages.map(({ n }) => n).filter(isBroken));
    const times = tally(crowd.starts().map(({ n }) => `${n}`));
    expect(times.size).toBe(600);
    // one that was struck between the record of a start and the start itself is charged it: decision 0005
    for (const { n, attempts, unheard } of letters) {
      expect(attempts).toBeGreaterThanOrEqual(6);
      expect(times.get(`${n}`)).toBeGreaterThanOrEqual(attempts - unheard);
    }
  });

  it.runIf(full).each(mortality)("keep to one rate, and use it; dying: %s", async (mortal) => {
    const count = (full ? 10 : 3) * perSecond;
    await using crowd = await gather(
      "rate",
      numbered(count, () => "any"),
      mortal,
    );
    expect(await crowd.untilDone()).toEqual([]);
    const starts = crowd
      .starts()
      .map(({ at }) => at)
      .toSorted((a, b) => a - b);
    expect(starts.length).toBeGreaterThanOrEqual(count);
    const within = starts.map((from) => starts.filter((at) => at >= from && at < from + 1_000).length);
    expect(Math.max(...within)).toBeLessThanOrEqual(perSecond * 1.05);
    const rate = (1_000 * starts.length) / ((starts.at(-1) ?? 0) - (starts[0] ?? 0));
    console.log(
      `${Math.round(rate)} a second of ${perSecond}, at most ${Math.max(...within)} within one; ${crowd.deaths} deaths`,
    );
  });

  it.each(mortality)(
    "keep to a rate for each key, and let a busy one keep nobody waiting; dying: %s",
    async (mortal) => {
      const greedy = (full ? 10 : 4) * perSecondAndKey;
      const messages = numbered(greedy + 60, (n) => (n < greedy ? "greedy" : `modest-${n % 3}`));
      await using crowd = await gather("rates", messages, mortal);
      expect(await crowd.untilDone()).toEqual([]);
      const starts = crowd.starts();
      expect(new Set(starts.map(({ n }) => n)).size).toBe(messages.length);
      for (const key of new Set(messages.map((message) => message.key))) {
        const at = starts.filter((start) => start.key === key).map((start) => start.at);
        const within = at.map((from) => at.filter((time) => time >= from && time < from + 1_000).length);
        expect(Math.max(...within), key).toBeLessThanOrEqual((perSecondAndKey + 1) * 1.05);
      }
      const of = (key: RegExp) => starts.filter((start) => key.test(start.key)).map(({ at }) => at);
      const [modest, greedily] = [of(/modest/).toSorted((a, b) => a - b), Math.max(...of(/greedy/))];
      const most = mortal ? Math.floor(0.75 * modest.length) : modest.length; // who was in a dead one's hands comes later
      expect(modest[most - 1]).toBeLessThan(greedily);
      const took = greedily - Math.min(...starts.map(({ at }) => at));
      console.log(`${Math.round((1_000 * greedy) / took)} a second of ${perSecondAndKey}; ${crowd.deaths} deaths`);
    },
  );

  it.each(mortality)("start nothing while a breaker is open, beyond what was in flight; dying: %s", async (mortal) => {
    interface News {
      readonly at: number;
      readonly state: string;
      readonly until?: number;
    }
    const news: News[] = [];
    const { worker } = crowdApp("breaker", "");
    const listening = observed.tcp.subscribe(breakerSubject(worker), {
      callback(error, message) {
        if (!error) news.push({ at: Date.now(), ...message.json<Omit<News, "at">>() });
      },
    });
    await using crowd = await gather(
      "breaker",
      numbered(400, () => "any"),
      mortal,
    );
    crowd.down(true);
    await expect
      .poll(() => news.filter(({ state }) => state === "open").length, { timeout: 30_000 })
      .toBeGreaterThan(2);
    crowd.down(false);
    expect(await crowd.untilDone()).toEqual([]);
    listening.unsubscribe();
    const opened = news.filter(({ state }, at) => state === "open" && news[at - 1]?.state !== "open");
    for (const { at, until = 0 } of opened) {
      const tried = news.find((one) => one.at > at && one.state === "half-open")?.at ?? Infinity;
      const during = crowd.starts().filter((start) => start.at > at && start.at < Math.min(until, tried));
      const perProcess = [...tally(during.map(({ pid }) => `${pid}`)).values()];
      expect(Math.max(0, ...perProcess), "starts of one process after it was open").toBeLessThanOrEqual(concurrency);
      expect(during.filter((start) => start.at > at + openForMs / 2)).toEqual([]);
    }
    const probes = news.filter(({ state }) => state === "half-open").length;
    console.log(`opened ${opened.length} times, tried ${probes} times; ${crowd.deaths} deaths`);
  });
});
