// Importing this from a client component is a build error: the key and the salt stay on the server.
import "server-only";
import { createHmac } from "node:crypto";
import type { ImageLoader } from "next/image";

/**
 * A loader for `getImageProps()`, which calls it on the server once per width of the srcset: the URL below `base` at which
 * imgproxy has the photo `src` (`local:///NAME`, `s3://BUCKET/KEY`, `https://…`) that wide, signed.
 *
 * The path names no format, so imgproxy makes AVIF or WebP for the browsers that accept it. Without `quality` each format
 * has imgproxy's default for it.
 */
export function imgproxyLoader(base: string): ImageLoader {
  const key = bytes("IMGPROXY_KEY");
  const salt = bytes("IMGPROXY_SALT");
  return ({ src, width, quality }) => {
    const options = quality ? `rs:fit:${width}/q:${quality}` : `rs:fit:${width}`;
    const path = `/${options}/${Buffer.from(src).toString("base64url")}`;
    const signature = createHmac("sha256", key).update(salt).update(path).digest("base64url");
    return `${base}/${signature}${path}`;
  };
}

/** Where browsers reach Envoy. */
export function imagesUrl(): string {
  return setting("IMAGES_URL");
}

function bytes(name: string): Buffer {
  const hex = setting(name);
  // Buffer.from() would stop at the first wrong digit, and every signature would be wrong.
  if (!/^([0-9a-f]{2})+$/i.test(hex)) throw new Error(`${name} is not hexadecimal`);
  return Buffer.from(hex, "hex");
}

function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; see .env.example`);
  return value;
}
