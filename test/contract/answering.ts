import { describe, it } from "vitest";
import { observe } from "../support/system.ts";
import { appOf, nothing, publishJobs, type Start, stored, unfinished, worker } from "./jobs.ts";

/** What a server says to an invocation that there is nothing to do for: none may wait without end for its word. */
export function answering(start: Start): void {
  const boundMs = 5_000;
  const invocation = { budgetMs: 30_000 };

  describe("a consumer", () => {
    it("that is empty leaves an invocation nothing to wait for", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      const { ms, consumers } = await system.invoke(invocation);
      expect(consumers[0]).toMatchObject({ pulled: 0, ended: "drained" });
      expect(ms).toBeLessThan(boundMs);
    });

    it("that may have no more outstanding leaves it nothing to wait for either", async ({ expect }) => {
      await using system = await start(appOf(worker({ maxAckPending: 1 }), () => {}));
      await publishJobs(system, 2);
      await (await system.js.consumers.get("JOBS", "worker")).next({ expires: 5_000 }); // someone else has the only place
      const { ms, consumers } = await system.invoke(invocation);
      expect(consumers[0]).toMatchObject({ pulled: 0, ended: "held", lag: 2 });
      expect(ms).toBeLessThan(boundMs);
    });

    it("is waited for as long as an invocation lingers, and what comes meanwhile is handled", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      const lingering = system.invoke({ budgetMs: 1_500, linger: "until-budget" });
      await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(1);
      await publishJobs(system, 10);
      expect((await lingering).consumers[0]).toMatchObject({ acked: 10, unconfirmed: 0, ended: "budget" });
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("that is not there is told with the command to run", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      await system.jsm.consumers.delete("JOBS", "worker");
      const { ms, consumers } = await system.invoke(invocation);
      expect(consumers[0]).toMatchObject({
        ended: "failed",
        error: expect.stringMatching(/"worker" of stream "JOBS" does not exist.*npx sortie apply/),
      });
      expect(ms).toBeLessThan(boundMs);
    });

    it("whose stream is not there is told as well", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      await system.jsm.streams.delete("JOBS");
      const { ms, consumers } = await system.invoke(invocation);
      expect(consumers[0]).toMatchObject({ ended: "failed", error: expect.stringMatching(/npx sortie apply/) });
      expect(ms).toBeLessThan(boundMs);
    });

    it("that is deleted while an invocation waits for more is told at once", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      const waiting = system.invoke({ ...invocation, linger: "until-budget" });
      await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(1);
      await system.jsm.consumers.delete("JOBS", "worker");
      const { ms, consumers } = await waiting;
      expect(consumers[0]).toMatchObject({ ended: "failed", error: expect.stringMatching(/npx sortie apply/) });
      expect(ms).toBeLessThan(15_000);
    });

    it("goes on without the stream that counts attempts, and the report says what is missing", async ({ expect }) => {
      const app = appOf(worker(), ({ data, attempt }) => {
        if (data.n === 1 && attempt === 1) throw new Error("again");
      });
      await using system = await start(app);
      await system.jsm.streams.delete("SORTIE_ATTEMPTS");
      await publishJobs(system, 3);
      const { ms, consumers } = await system.invoke(invocation);
      expect(consumers[0]).toMatchObject({
        acked: 2,
        retried: 1,
        error: expect.stringMatching(/"SORTIE_ATTEMPTS".*does not exist.*npx sortie apply/),
      });
      expect(ms).toBeLessThan(boundMs);
      expect(await stored(system, "JOBS")).toEqual({ "jobs.do": 1 });
    });
  });

  describe("a server that is gone in the middle", () => {
    it("does not hold an invocation beyond its deadline, and has lost nothing when it is back", async ({ expect }) => {
      const handled: number[] = [];
      const app = appOf(worker({ ackWait: "1s" }), async ({ data }, { publish }) => {
        handled.push(data.n);
        await publish("jobs.done", data);
        if (handled.length === 3) await system.server.kill("SIGKILL");
      });
      await using system = await start(app);
      await publishJobs(system, 3);
      const started = Date.now();
      const { consumers } = await system.invoke({ budgetMs: 2_500 });
      expect(Date.now() - started).toBeLessThan(4_000); // as near as a busy machine comes to it
      expect(consumers[0]).toMatchObject({ pulled: 3, acked: 0, unconfirmed: 3 });

      await system.server.start();
      await using again = await observe(system.server);
      await expect.poll(async () => (await system.invoke()) && unfinished(again)).toEqual(nothing);
      expect(await stored(again, "JOBS")).toEqual({ "jobs.done": 3 });
    });
  });
}
