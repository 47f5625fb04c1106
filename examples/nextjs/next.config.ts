import type { NextConfig } from "next";

const config: NextConfig = {
  images: {
    // Without a loader file, so that an <Image> without a loader is an error, and Next.js's own optimizer is off.
    loader: "custom",
    // The widths in every srcset: each is one entry per photo and format in the cache.
    imageSizes: [],
    deviceSizes: [320, 640, 960],
  },
};

export default config;
