import { PgBoss } from "pg-boss";
import { orderAt } from "../order.ts";
import { startPostgres } from "../servers.ts";
import { assertAhead, byThousands, type Delaying, type Queue, range, starts } from "./queue.ts";

const batchSize = 100;

export async function startPgBoss(): Promise<Queue & Delaying> {
  await using starting = new AsyncDisposableStack();
  const postgres = starting.use(await startPostgres());
  const boss = new PgBoss({ host: postgres.socket, user: "bench", database: "postgres", schedule: false });
  boss.on("error", (error) => console.error(error));
  starting.defer(() => boss.stop());
  await boss.start();
  await boss.createQueue("orders");
  const running = starting.move();
  return {
    name: "pg-boss",
    server: `PostgreSQL ${postgres.version}, fsync on, synchronous_commit on`,
    settings: `fetch and complete, ${batchSize} at a time`,
    fill: (count) =>
      byThousands(count, (from, to) =>
        boss.insert(
          "orders",
          range(from, to, (n) => ({ data: orderAt(n) })),
        ),
      ),
    async drain(count) {
      for (let done = 0; done < count; ) {
        const jobs = await boss.fetch("orders", { batchSize });
        await boss.complete(
          "orders",
          jobs.map(({ id }) => id),
        );
        done += jobs.length;
      }
    },
    later: {
      settings: `startAfter, polling every 0.5 s (its minimum), ${batchSize} at a time, burstWhenBatchFull`,
      async lateness(due) {
        const { heard, all } = starts(due);
        const polling = { pollingIntervalSeconds: 0.5, batchSize, burstWhenBatchFull: true };
        await boss.createQueue("later");
        await boss.work("later", polling, async (jobs) => {
          for (const { data } of jobs) heard(data);
        });
        await byThousands(due.length, (from, to) =>
          boss.insert(
            "later",
            range(from, to, (n) => ({ data: orderAt(n), startAfter: new Date(due[n] ?? 0) })),
          ),
        );
        try {
          assertAhead(due);
          return await all();
        } finally {
          await boss.offWork("later");
        }
      },
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
