import { createHash, createHmac } from "node:crypto";
import type { OnMore } from "../consume/continuation.ts";
import { SortieError } from "../errors.ts";

const service = "lambda";
const longestMs = 1_000; // the most that an invocation keeps for it

/**
 * For `onMore` of AWS Lambda: the function starts itself for each place, asynchronously (`InvocationType: Event`), as its role
 * must allow (`lambda:InvokeFunction` on the function itself).
 * @example
 * export const { http, pull, release } = serve(app, { onMore: selfInvoke() });
 */
export function selfInvoke(): OnMore {
  return async (places) => {
    const asked = await Promise.allSettled(places.map((place) => invokeSelf(JSON.stringify(place))));
    for (const one of asked) if (one.status === "rejected") throw one.reason; // none is left under way
  };
}

async function invokeSelf(payload: string): Promise<void> {
  const url = urlOf(process.env);
  const answer = await fetch(url, {
    method: "POST",
    // a connection that is kept would be dead after the next freeze
    headers: { ...signed(url, payload, process.env, new Date()), Connection: "close" },
    body: payload,
    signal: AbortSignal.timeout(longestMs),
  });
  if (answer.status === 202) return;
  const why = answer.headers.get("x-amzn-errortype") ?? (await answer.text()).slice(0, 200);
  throw new SortieError(
    "invocation-failed",
    `Lambda did not start ${url.pathname.split("/")[3]} again: expected HTTP 202, got ${answer.status} (${why}). The function's role must allow lambda:InvokeFunction on the function itself.`,
  );
}

/** Where Lambda's Invoke API is, as the AWS SDKs find it, for the version of the function that runs. */
function urlOf(env: NodeJS.ProcessEnv): URL {
  const { AWS_REGION, AWS_LAMBDA_FUNCTION_NAME: name, AWS_LAMBDA_FUNCTION_VERSION: version } = env;
  const regional = `https://${service}.${AWS_REGION}.amazonaws.com${AWS_REGION?.startsWith("cn-") ? ".cn" : ""}`;
  const endpoint = env.AWS_ENDPOINT_URL_LAMBDA || env.AWS_ENDPOINT_URL || regional;
  const qualifier = version && version !== "$LATEST" ? `?Qualifier=${version}` : "";
  return new URL(`${endpoint.replace(/\/$/, "")}/2015-03-31/functions/${name}/invocations${qualifier}`);
}

/** The headers of a request that carries AWS's Signature Version 4, by the credentials that Lambda gives a function. */
function signed(url: URL, payload: string, env: NodeJS.ProcessEnv, now: Date): Record<string, string> {
  const { AWS_REGION: region, AWS_ACCESS_KEY_ID: key, AWS_SECRET_ACCESS_KEY: secret, AWS_SESSION_TOKEN: token } = env;
  if (!region || !key || !secret) {
    throw new SortieError(
      "not-configured",
      "selfInvoke: expected AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which Lambda sets for a function",
    );
  }
  const time = now.toISOString().replace(/[-:]|\.\d+/g, "");
  const day = time.slice(0, 8);
  const headers = {
    "x-amz-date": time,
    "x-amz-invocation-type": "Event",
    ...(token && { "x-amz-security-token": token }),
  };
  const all = Object.entries({ host: url.host, ...headers }); // by their names, in order
  const names = all.map(([name]) => name).join(";");
  const canonical = [
    "POST",
    url.pathname,
    url.search.slice(1),
    ...all.map(([name, value]) => `${name}:${value}`),
    "",
    names,
    sha256(payload),
  ].join("\n");
  const scope = `${day}/${region}/${service}/aws4_request`;
  const signing = [day, region, service, "aws4_request"].reduce<string | Buffer>(hmac, `AWS4${secret}`);
  const signature = createHmac("sha256", signing).update(`AWS4-HMAC-SHA256\n${time}\n${scope}\n${sha256(canonical)}`);
  const authorization = `AWS4-HMAC-SHA256 Credential=${key}/${scope}, SignedHeaders=${names}, Signature=${signature.digest("hex")}`;
  return { ...headers, authorization };
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

function hmac(key: string | Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}
