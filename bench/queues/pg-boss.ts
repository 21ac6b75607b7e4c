import { PgBoss } from "pg-boss";
import { orderAt } from "../order.ts";
import { startPostgres } from "../servers.ts";
import { byThousands, type Queue, range } from "./queue.ts";

const batchSize = 100;

export async function startPgBoss(): Promise<Queue> {
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
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
