import { AckPolicy } from "@nats-io/jetstream";
import { describe, it } from "vitest";
import { openPuller } from "../../src/nats/pull.ts";
import { appOf, nothing, publishJobs, type Start, unfinished, worker } from "./jobs.ts";

/** What is asked for and what comes of it, where more than one pull is under way or a limit is in the way. */
export function pulling(start: Start): void {
  describe("pulls", () => {
    it("that overlap end each by the server's own word on it", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      const connection = await system.connect();
      let delivered = 0;
      const puller = openPuller(connection, { stream: "JOBS", consumer: "worker", bounded: false }, () => delivered++);
      const asked = { maxBytes: 1_000_000, patienceMs: 5_000 };
      const ended: string[] = [];
      const pull = async (name: string, batch: number, waitMs: number) => {
        ended.push(`${name}: ${await puller.pull({ ...asked, batch, waitMs })}`);
      };
      const short = pull("short", 3, 500);
      const long = pull("long", 3, 5_000);
      await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(2);
      for (let n = 1; n <= 3; n++) await system.publish("jobs.do", { n }); // the server serves them in turn
      await short;
      await expect.poll(() => puller.underWay).toBe(2); // as the server says when the short one's time is over
      expect(ended).toHaveLength(1);
      await publishJobs(system, 2, 4);
      await long;
      expect(ended[1]).toBe("long: more");
      expect(delivered).toBe(5);
      expect(puller.underWay).toBe(0);
      puller.close();
      await connection.close();
    });

    it("bring a message that has more bytes than may be in hand, alone", async ({ expect }) => {
      const together: number[] = [];
      let running = 0;
      const app = appOf(worker({ maxBytes: 2_000 }), async ({ data }) => {
        running += 1;
        if (data.n === 3) together.push(running);
        await new Promise(setImmediate);
        running -= 1;
      });
      await using system = await start(app);
      for (let n = 1; n <= 6; n++) await system.publish("jobs.do", { n, padding: "x".repeat(n === 3 ? 9_000 : 500) });
      expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 6, acked: 6, ended: "drained" });
      expect(together).toEqual([1]);
      expect(await unfinished(system)).toEqual(nothing);
    });

    it("do not wait for what a consumer may not hand out, where few deliveries may be outstanding", async ({
      expect,
    }) => {
      const app = appOf(worker({ maxAckPending: 3 }), ({ data }) => {
        return new Promise((resolve) => setTimeout(resolve, data.n % 4));
      });
      await using system = await start(app);
      await publishJobs(system, 300);
      let [invocations, acked, total] = [0, 0, 0];
      while (acked < 300 && invocations < 10) {
        const { ms, consumers } = await system.invoke();
        invocations += 1;
        acked += consumers[0]!.acked;
        total += ms;
      }
      expect(acked).toBe(300); // in one invocation, unless the server was so busy that it served none in time
      expect(total).toBeLessThan(10_000);
    });

    it("keep the limits that someone else has set on the consumer", async ({ expect }) => {
      await using system = await start(appOf(worker({ concurrency: 50 }), () => {}));
      await system.jsm.consumers.delete("JOBS", "worker");
      await system.jsm.consumers.add("JOBS", {
        durable_name: "worker",
        ack_policy: AckPolicy.Explicit,
        filter_subject: "jobs.do",
        max_batch: 5,
        max_bytes: 2_000,
        max_expires: 300e6,
      });
      await publishJobs(system, 100);
      const { ms, consumers } = await system.invoke({ linger: 1_000, budgetMs: 20_000 });
      expect(consumers[0]).toMatchObject({ pulled: 100, acked: 100, ended: "drained" });
      expect(ms).toBeLessThan(10_000); // it lingers for a second, whatever one pull may wait
      expect(await unfinished(system)).toEqual(nothing);
    });
  });
}
