import { wsconnect } from "@nats-io/nats-core";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { type Backlog, startBacklog } from "../backlog.ts";
import { temporaryFolder } from "../servers.ts";
import { invokeOn, keeping } from "../sortie.ts";
import type { Queue } from "./queue.ts";

const batch = 100;

/**
 * Sortie on a stream in a file; `syncInterval` is nats-server's own setting, two minutes unless told otherwise. With
 * `always` it syncs once for every message that is stored, and for every one that a work queue removes.
 */
export async function startSortie(
  name: string,
  syncInterval: "2m" | "always" = "2m",
  retention: "workqueue" | "limits" = "workqueue",
): Promise<Queue> {
  await using starting = new AsyncDisposableStack();
  const store = starting.use(await temporaryFolder());
  const config = `jetstream { store_dir: "${store.path}", sync_interval: ${syncInterval} }`;
  const server = starting.use(await startNatsServer({ config }));
  const nc = await wsconnect({ servers: server.url });
  starting.defer(() => nc.close());
  const running = starting.move();
  let backlog: Backlog | undefined;
  return {
    name,
    server: `nats-server ${nc.info?.version}, file storage, ${retention}, sync_interval ${syncInterval}`,
    ...(syncInterval === "always" && { share: retention === "limits" ? 0.5 : 0.2 }),
    settings: `batch ${batch}, concurrency ${batch}, confirmed together`,
    async fill(count) {
      await backlog?.cleared();
      backlog = await startBacklog(nc, count, { batch, concurrency: batch, retention });
    },
    async drain(count) {
      for (let acked = 0; backlog && acked < count; ) acked += (await invokeOn(backlog, keeping(nc))).acked;
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
