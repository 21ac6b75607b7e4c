import { describe, it } from "vitest";
import { fixed, NonRetriableError } from "../../src/index.ts";
import { altered } from "../support/connections.ts";
import { publishRaw } from "../support/peers.ts";
import { appOf, deadLetters, nothing, publishJobs, type Start, stored, unfinished, worker } from "./jobs.ts";

const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1);
const ascending = (numbers: number[]) => numbers.toSorted((a, b) => a - b);

/** How deliveries leave an invocation, as the server and a client that is not Sortie's see it. */
export function settling(start: Start): void {
  describe("a delivery", () => {
    it("is acknowledged once it is handled, and gone", async ({ expect }) => {
      const seen: number[] = [];
      await using system = await start(appOf(worker(), ({ data }) => void seen.push(data.n)));
      await publishJobs(system, 100);
      const { consumers } = await system.invoke();
      expect(consumers[0]).toMatchObject({ pulled: 100, acked: 100, unconfirmed: 0, ended: "drained" });
      expect(await unfinished(system)).toEqual(nothing);
      expect(await stored(system, "JOBS")).toEqual({});
      expect(ascending(seen)).toEqual(upTo(100));
    });

    it("goes to one of the invocations that run at the same time", async ({ expect }) => {
      const seen: number[] = [];
      const app = appOf(worker({ concurrency: 4 }), async ({ data }) => {
        seen.push(data.n);
        await new Promise(setImmediate);
      });
      await using system = await start(app);
      await publishJobs(system, 300);
      await Promise.all([system.invoke(), system.invoke(), system.invoke()]);
      expect(ascending(seen)).toEqual(upTo(300));
      expect((await system.jsm.consumers.info("JOBS", "worker")).delivered.consumer_seq).toBe(300);
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("comes again where its handler throws, and its attempts are counted one by one", async ({ expect }) => {
      const attempts = new Map<number, number[]>();
      const app = appOf(worker(), ({ data, attempt }) => {
        attempts.set(data.n, [...(attempts.get(data.n) ?? []), attempt]);
        if (attempt < 3) throw new Error("not yet");
      });
      await using system = await start(app);
      await publishJobs(system, 10);
      await system.settle();
      expect([...attempts.values()]).toEqual(Array(10).fill([1, 2, 3]));
      expect(await unfinished(system)).toEqual(nothing);
      expect(await stored(system, "JOBS")).toEqual({});
      expect(await deadLetters(system)).toEqual([]);
    });

    it("goes to the dead letters at once where its error is non-retriable, with its story", async ({ expect }) => {
      const app = appOf(worker(), () => {
        throw new NonRetriableError("card declined");
      });
      await using system = await start(app);
      const sequence = await system.publish("jobs.do", { n: 7 }, "id-7");
      expect((await system.invoke({ host: "here" })).consumers[0]).toMatchObject({ pulled: 1, deadLettered: 1 });
      const [letter, ...others] = await deadLetters(system);
      expect(others).toEqual([]);
      expect(letter?.json()).toEqual({ n: 7 });
      const story = Object.fromEntries(letter!.header.keys().map((name) => [name, letter!.header.get(name)]));
      expect(story).toMatchObject({
        "Sortie-Reason": "non-retriable",
        "Sortie-Error": "NonRetriableError: card declined",
        "Sortie-Stream": "JOBS",
        "Sortie-Sequence": `${sequence}`,
        "Sortie-Subject": "jobs.do",
        "Sortie-Consumer": "worker",
        "Sortie-Attempts": "1",
        "Sortie-Message-Id": "id-7",
        "Sortie-Host": "here",
      });
      expect(await unfinished(system)).toEqual(nothing);
      expect(await stored(system, "JOBS")).toEqual({});
    });

    it("goes there after its last attempt, started neither more nor less often", async ({ expect }) => {
      let starts = 0;
      const app = appOf(worker(), () => {
        starts += 1;
        throw new Error("never");
      });
      await using system = await start(app);
      await publishJobs(system, 1);
      await system.settle();
      expect(starts).toBe(3);
      const [letter, ...others] = await deadLetters(system);
      expect(others).toEqual([]);
      expect(letter?.header.get("Sortie-Reason")).toBe("attempts-exhausted");
      expect(letter?.header.get("Sortie-Attempts")).toBe("3");
      expect(letter?.header.values("Sortie-Attempt")).toHaveLength(3);
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("that nobody can read goes there byte for byte", async ({ expect }) => {
      let starts = 0;
      await using system = await start(appOf(worker(), () => void starts++));
      const payloads = [new Uint8Array([0xff, 0xfe, 0x00]), new Uint8Array(), new TextEncoder().encode('{"n":"1"}')];
      for (const payload of payloads) await system.publish("jobs.do", payload);
      await publishRaw(system.server.tcpUrl, "jobs.do", "NATS/1.0\r\nno header: at all\r\n\r\n", "not JSON");
      expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 4, deadLettered: 4 });
      const told = (await deadLetters(system)).map(({ header, data }) => [
        `${header.get("Sortie-Sequence")} ${header.get("Sortie-Reason")}`,
        new Uint8Array(data),
      ]);
      expect(Object.fromEntries(told)).toEqual({
        "1 undecodable": payloads[0],
        "2 undecodable": payloads[1],
        "3 invalid": payloads[2],
        "4 undecodable": new TextEncoder().encode("not JSON"),
      });
      expect(starts).toBe(0);
      expect(await stored(system, "JOBS")).toEqual({});
    });

    it("loses nothing where its dead letter is refused, and goes there as soon as it is taken", async ({ expect }) => {
      const app = appOf(worker(), () => {
        throw new NonRetriableError("no");
      });
      await using system = await start(app);
      await system.jsm.streams.delete("DEAD");
      await publishJobs(system, 1);
      expect((await system.invoke()).consumers[0]).toMatchObject({ retried: 1, deadLettered: 0 });
      expect(system.events).toMatchObject([{ error: expect.stringMatching(/reached no stream.*npx sortie apply/) }]);
      await system.jsm.streams.add({ name: "DEAD", subjects: ["dead.>"] });
      await system.settle();
      expect((await deadLetters(system)).map(({ header }) => header.get("Sortie-Reason"))).toEqual(["non-retriable"]);
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("that was handed back unstarted is not charged for it", async ({ expect }) => {
      const starts: string[] = [];
      const options = { concurrency: 1, retry: { attempts: 1, backoff: fixed(20) } };
      const app = appOf(worker(options), async ({ data, attempt }, { signal }) => {
        starts.push(`${data.n}, attempt ${attempt}`);
        if (starts.length === 4) await new Promise((resolve) => signal.addEventListener("abort", resolve));
      });
      await using system = await start(app);
      await publishJobs(system, 20);
      const [report] = (await system.invoke({ budgetMs: 2_000 })).consumers;
      expect(report).toMatchObject({ acked: 4, unconfirmed: 0, ended: "budget" });
      expect(report?.returned).toBeGreaterThan(0);
      expect(report?.pulled).toBe(4 + (report?.returned ?? 0));
      await system.settle();
      expect(starts.toSorted()).toEqual(
        upTo(20)
          .map((n) => `${n}, attempt 1`)
          .toSorted(),
      );
      expect(await deadLetters(system)).toEqual([]);
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("whose settlement was lost comes again and loses nothing else, whichever it was", async ({ expect }) => {
      const attempts = new Map<number, number[]>();
      const app = appOf(worker({ ackWait: "1s" }), async ({ data: { n }, attempt }, { publish }) => {
        attempts.set(n, [...(attempts.get(n) ?? []), attempt]);
        await publish("jobs.done", { n });
        if (n === 2 && attempt === 1) throw new Error("again");
        if (n === 3) throw new NonRetriableError("never");
      });
      await using system = await start(app);
      await publishJobs(system, 3);
      const isSettlement = (subject: string) => /^\$JS\.ACK\.(.+\.)?JOBS\./.test(subject);
      const connect = async () => {
        const connection = await system.connect();
        return altered(connection, {
          publish: (subject, ...rest) => isSettlement(subject) || connection.publish(subject, ...rest),
          request: (subject, ...rest) =>
            isSettlement(subject) ? new Promise(() => {}) : connection.request(subject, ...rest),
        });
      };
      const { consumers } = await system.invoke({ connect, budgetMs: 1_000 });
      expect(consumers[0]).toMatchObject({ pulled: 3, acked: 0, retried: 0, deadLettered: 0, unconfirmed: 3 });
      await expect.poll(async () => (await system.invoke()) && unfinished(system)).toEqual(nothing);
      // what succeeded had no failure to count, and what was decided already is not decided anew
      expect(Object.fromEntries(attempts)).toEqual({ 1: [1, 1], 2: [1, 2], 3: [1, 1] });
      expect(await stored(system, "JOBS")).toEqual({ "jobs.done": 2 });
      expect(await deadLetters(system)).toHaveLength(1);
    });
  });

  describe("what a handler publishes", () => {
    it("is stored once, however often its message is handled", async ({ expect }) => {
      const app = appOf(worker(), async ({ data, attempt }, { publish }) => {
        await publish("jobs.done", data);
        void publish("jobs.done", { n: -data.n });
        if (attempt < 3) throw new Error("after publishing");
      });
      await using system = await start(app);
      await publishJobs(system, 10);
      await system.settle();
      expect(await stored(system, "JOBS")).toEqual({ "jobs.done": 20 });
      expect(await unfinished(system)).toEqual(nothing);
    });
  });
}
