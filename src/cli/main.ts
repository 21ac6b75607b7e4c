#!/usr/bin/env node
import { resolve } from "node:path";
import { Command } from "commander";
import { createJiti } from "jiti";
import { SortieError, textOf } from "../errors.ts";
import { assertLoggedIn, connect, disconnect } from "../nats/connection.ts";
import { type Applied, apply } from "../provision/apply.ts";
import { collect } from "./definitions.ts";

const program = new Command("sortie").description("NATS JetStream for functions that don't stay up");

program
  .command("apply")
  .description("create or update the streams and consumers of an app on the server")
  .argument("<module>", "the file that exports the app, or its definitions (TypeScript or JavaScript)")
  .option("--server <url>", "the server's WebSocket URL; login by NATS_CREDS or NATS_TOKEN", process.env.NATS_URL)
  .action(async (file: string, { server }: { server?: string }) => {
    if (!server) throw new SortieError("invalid-option", "Which server? Set NATS_URL or pass --server wss://…");
    const definitions = collect(
      file,
      await createJiti(import.meta.url, { fsCache: false }).import<Record<string, unknown>>(resolve(file)),
    );
    const { NATS_CREDS: creds, NATS_TOKEN: token } = process.env;
    const connection = await connect({ url: server, creds, token, name: "sortie apply" }, 10_000);
    try {
      await apply(connection, definitions, (applied) => console.log(lineOf(applied))).catch((error: unknown) => {
        throw error instanceof SortieError
          ? error
          : new SortieError("connection-lost", `Stopped by the server or the network: ${textOf(error)}`, {
              cause: error,
            });
      });
    } catch (error) {
      await assertLoggedIn(connection);
      throw error;
    } finally {
      disconnect(connection);
    }
  });

function lineOf({ kind, name, action, changes }: Applied): string {
  const word = { create: "created", update: "updated", none: "unchanged" }[action];
  return `${word.padEnd(9)}  ${kind.padEnd(8)}  ${name}${changes.map((change) => `\n             ${change}`).join("")}`;
}

try {
  await program.parseAsync();
} catch (error) {
  console.error(error instanceof SortieError ? error.message : error);
  process.exit(1);
}
process.exit(0); // not held up by a peer that does not close
